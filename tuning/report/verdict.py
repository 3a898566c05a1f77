"""The result of a run in one sentence."""

from core.config import METRICS
from tuning.ranking import excess
from tuning.run import Run
from tuning.wording import measured, number, with_interval


def verdict(run: Run) -> str:
    """The result in one sentence."""
    first, order = run.best, run.ranked
    n_finished = sum(t.has_ended for t in run.trials)
    if n_finished == 0:
        return "No trial has finished yet."
    finished = f"{n_finished} finished trial{'' if n_finished == 1 else 's'}"
    if first is not None:
        metric = run.spec.objective.metric
        drops = [
            f"{c.metric} {measured(first.metrics.get(c.metric), c.metric)} {METRICS[c.metric].unit} "
            f"({f'limit {c.limit:g}' if not c.is_floor else c.words})"
            for c in run.spec.constraints
        ]
        kept = f" with {' and '.join(drops)}" if drops else ""
        steps = f"{first.step} optimiser step{'' if first.step == 1 else 's'}"
        reported = ""
        if first.report_metrics:
            judged = [metric, *(c.metric for c in run.spec.constraints)]
            values = [f"{m} {measured(first.report_metrics.get(m), m)}" for m in judged]
            reported = f"; on the reporting split {', '.join(values)}"
        return (
            f"Trial {first.number} {_standing(run)} {finished}: {metric} "
            f"{with_interval(first.value, first.value_interval, metric)} "
            f"after {steps}{kept}{reported}."
        )
    nearest = min(order, key=excess, default=None)
    if nearest is None:
        return f"None of {finished} is feasible: none of them has a value."
    worst = max(nearest.violations, key=lambda m: nearest.violations[m], default=None)
    floors = {c.metric for c in run.spec.constraints if c.is_floor}
    side = "below" if worst in floors else "above"
    how = f", {worst} {number(excess(nearest))} {side} its limit" if worst else ""
    return f"None of {finished} is feasible; trial {nearest.number} comes nearest{how}."


def _standing(run: Run) -> str:
    """What the best trial is, before the number of all."""
    if run.is_repetition:
        return "stands for the configuration that is recommended over seeds, of"
    return "is the best of"
