"""What is said of a run as a whole: counts, savings, the time left, and the JSON that scripts read."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tuning.over_seeds import equals, repeated_rows
from tuning.ranking import displaced
from tuning.records import TrialRecord
from tuning.run import Run
from tuning.time_left import time_left_s
from tuning.wording import listed, measured, number, score

GUARD_STOPS = ("retain_guard", "non_finite")


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What stopping early saved.

    Attributes:
        guard_stopped: Trials that the retain guard stopped, whatever their state.
        past_target_stopped: Trials that stopped because they overshot.
        no_effect_stopped: Trials that stopped because they forgot nothing.
        steps_saved: Optimiser steps not made, by any of them.
        steps_planned: Steps of all finished trials if nothing had stopped them.
    """

    guard_stopped: int
    past_target_stopped: int
    no_effect_stopped: int
    steps_saved: int
    steps_planned: int

    @property
    def share(self) -> float:
        """Saved share of the planned steps."""
        return self.steps_saved / self.steps_planned if self.steps_planned else 0.0


def counts(run: Run) -> dict[str, int]:
    """Trials by state, in the words of ``status``; ``interrupted`` are those that no driver runs any more."""
    by_state = Counter(t.state for t in run.trials)
    begun = by_state["RUNNING"] + by_state["INTERRUPTED"]
    waiting = max(0, run.target - len(run.trials)) + by_state["WAITING"]
    return {
        "complete": by_state["COMPLETE"],
        "pruned": by_state["PRUNED"],
        "failed": by_state["FAIL"],
        "running": begun if run.is_driven else 0,
        "waiting": waiting,
        "interrupted": 0 if run.is_driven else begun,
    }


def savings(run: Run) -> Savings:
    """Steps saved by the retain guard, by ``past_target`` and by ``no_effect``."""
    planned = run.spec.budget.max_steps
    finished = [t for t in run.trials if t.steps is not None]
    early = [t for t in finished if t.stopped_by in (*GUARD_STOPS, "past_target", "no_effect")]
    return Savings(
        guard_stopped=sum(t.stopped_by in GUARD_STOPS for t in finished),
        past_target_stopped=sum(t.stopped_by == "past_target" for t in finished),
        no_effect_stopped=sum(t.stopped_by == "no_effect" for t in finished),
        steps_saved=sum(planned - (t.steps or 0) for t in early),
        steps_planned=planned * len(finished),
    )


def eta_s(run: Run) -> float | None:
    """Seconds until the sweep ends, from the durations so far; ``None`` before the first trial ends."""
    durations = [t.duration_s for t in run.trials if t.duration_s]
    c = counts(run)
    at_once = max(1, run.driver.concurrent or 1)
    begun = c["running"] + c["interrupted"]
    return time_left_s(durations, waiting=c["waiting"], running=begun, at_once=at_once)


def doubts(run: Run) -> list[str]:
    """What must be said beside the name of the best trial: ties, and constraints broken on the reporting split.

    Of a repeat run, that it is one and what it recommends over seeds.
    """
    if run.is_repetition:
        return _of_repeats(run)
    first = run.best
    if first is None:
        return []
    found = []
    tied = run.tied
    if tied:
        one = len(tied) == 1
        found.append(
            f"trial{'' if one else 's'} {listed([t.number for t in tied])} "
            f"tie{'s' if one else ''} with it: the 95 % intervals overlap, and of a tie the smallest worst "
            "drop decides, then the fewest steps"
        )
    found += [
        f"trial {t.number} would come first on the probe split, but breaks {_broken(run, t)}"
        for t in displaced(run.trials)
    ]
    if first.reported_feasible is False:
        found.append(f"it breaks {_broken(run, first)}; no finalist keeps all")
    return found


def _of_repeats(run: Run) -> list[str]:
    """What a repeat run recommends, which trial stands for it and why, and what cannot be told from it."""
    first = run.best
    if first is None:
        return ["this is a repeat run, and no repeat kept every limit so far"]
    one = run.repeats[0]
    name, metric = one.name, run.spec.objective.metric
    n_ended = sum(t.has_ended for t in run.trials)
    so_far = f", so far: {n_ended} of {run.target} trials ended" if n_ended < run.target else ""
    found = [
        f"this is a repeat run: {name} is recommended over seeds ({metric} {number(one.value.mean)} on average, "
        f"{one.kept} of {len(one.trials)} repeats kept every limit{so_far})",
        "single seeds are not to be ranked, because a value chosen for being high is a lucky one: of the "
        f"repeats of {name} that kept every limit, trial {first.number} of {run.name} has the middle value and "
        "stands for them",
    ]
    tied = [other.name for other in equals(run.repeats)]
    if tied:
        found.append(
            f"{' and '.join(tied)} cannot be told from it over the same seeds; of these the smallest mean worst drop "
            "decides"
        )
    if first.reported_feasible is False:
        found.append(
            f"trial {first.number} breaks {_broken(run, first)}; no repeat of {name} keeps all"
        )
    return found


def _broken(run: Run, trial: TrialRecord) -> str:
    """Which constraints a finalist breaks, and by which values."""
    report = trial.report_metrics or {}
    reported = ", ".join(
        f"{metric} {measured(report[metric], metric)} (limit {report[metric] - excess:g})"
        for metric, excess in trial.report_violations.items()
        if not excess <= 0.0
    )
    evaluated = ", ".join(
        f"{limit.metric} {score(trial.evaluation[limit.metric])} ({limit.words})"
        for limit in run.spec.evaluation.constraints
        if not trial.evaluation_violations.get(limit.metric, 0.0) <= 0.0
    )
    where = {"on the reporting split": reported, "in its evaluation": evaluated}
    return " and ".join(f"a constraint {place}: {what}" for place, what in where.items() if what)


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """A metric of ``evaluate`` of a finalist.

    Attributes:
        metric: ``SUITE.METRIC``.
        before: Of the untouched model; ``None`` if it was not measured.
        after: Of the finalist.
        limit: Its limit in words; empty if it has none.
        is_broken: Whether the limit is broken.
    """

    metric: str
    before: float | None
    after: float
    limit: str
    is_broken: bool


def evaluation_rows(run: Run, trial: TrialRecord) -> list[EvaluationRow]:
    """What suites measure of a finalist, beside the untouched model; limited metrics first."""
    limits = {c.metric: c for c in run.spec.evaluation.constraints}
    names = sorted(trial.evaluation, key=lambda name: name not in limits)
    return [
        EvaluationRow(
            metric=name,
            before=run.facts.evaluation.get(name),
            after=trial.evaluation[name],
            limit=limits[name].words if name in limits else "",
            is_broken=not trial.evaluation_violations.get(name, 0.0) <= 0.0,
        )
        for name in names
    ]


def best_json(run: Run, *, top: int | None = None) -> dict[str, Any]:
    """``best --format json``, the binding shape; of a repeat run with ``repeats``, the configurations over seeds."""
    shown = run.ranked
    placed = {t.number for t in shown}
    chosen = (shown + [t for t in run.trials if t.number not in placed])[:top]
    return {
        "run": run.name,
        "objective": {
            "metric": run.spec.objective.metric,
            "direction": run.spec.objective.direction,
        },
        "constraints": [c.model_dump() for c in run.spec.constraints],
        "trials": run.rows(chosen),
        **({"repeats": repeated_rows(run.repeats)} if run.is_repetition else {}),
    }


def status_json(run: Run) -> dict[str, Any]:
    """``status --json``, the binding shape."""
    saved, first = savings(run), run.best
    return {
        "run": run.name,
        "state": run.state,
        "target": run.target,
        "counts": counts(run),
        "guard": {
            "stopped": saved.guard_stopped,
            "past_target": saved.past_target_stopped,
            "no_effect": saved.no_effect_stopped,
            "steps_saved": saved.steps_saved,
            "steps_planned": saved.steps_planned,
        },
        "best": None if first is None else run.rows([first])[0],
        "elapsed_s": run.elapsed_s,
        "eta_s": eta_s(run) if run.state == "running" else None,
    }
