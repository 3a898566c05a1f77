"""Text views of a run for the terminal. They read records and write nothing."""

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from core.errors import UserError
from tuning.plots.reading import number_or_nan
from tuning.records import TrialRecord
from tuning.results import counts, doubts, eta_s, evaluation_rows, savings
from tuning.run import Run
from tuning.wording import between, duration, parameters, score, with_interval

_SPARKS = "▁▂▃▄▅▆▇█"


def pick_trial(run: Run, name: str) -> TrialRecord:
    """The trial of a number, or ``best``.

    Raises:
        UserError: If there is none.
    """
    if name == "best":
        found = run.best
        if found is None:
            raise UserError(
                f"{run.path}: no trial is feasible yet; look at `unlearn-tune best {run.path}` for the nearest"
            )
        return found
    if not name.isdecimal() or int(name) >= len(run.trials):
        last = len(run.trials) - 1
        raise UserError(f"TRIAL: a number from 0 to {last}, or best, is expected, got {name!r}")
    return run.trials[int(name)]


def status_text(run: Run) -> str:
    """A few lines: state, counts, savings, best."""
    c, saved, first = counts(run), savings(run), run.best
    lines = [
        f"{run.name}: {run.state}, {c['complete'] + c['pruned'] + c['failed']} of {run.target} trials "
        f"({c['complete']} complete, {c['pruned']} pruned, {c['failed']} failed, {_not_ended(run)}, "
        f"{c['waiting']} waiting)",
        savings_text(run),
    ]
    if first is None:
        lines.append("best: no feasible trial yet")
    else:
        metric = run.spec.objective.metric
        value = with_interval(first.value, first.value_interval, metric)
        lines.append(
            f"best: trial {first.number}, {metric} {value} at step {first.step}: "
            f"{parameters(first.params)}"
        )
        lines += [f"  {doubt}" for doubt in doubts(run)]
    if run.state == "running":
        lines.append(f"left: about {duration(eta_s(run), unknown='?')}")
    elif run.state == "interrupted":
        lines.append(f"go on with: unlearn-tune resume {run.path}")
    return "\n".join(line for line in lines if line or saved)


def _not_ended(run: Run) -> str:
    """Trials that have begun and not ended, in words."""
    c = counts(run)
    return f"{c['running']} running" if run.is_driven else f"{c['interrupted']} interrupted"


def savings_text(run: Run) -> str:
    """What stopping early saved, in a sentence."""
    s = savings(run)
    idle = f", {s.no_effect_stopped} without effect" if s.no_effect_stopped else ""
    return (
        f"early stops: {s.guard_stopped} by the retain guard, {s.past_target_stopped} past the target{idle}; "
        f"{s.steps_saved} of {s.steps_planned} steps saved ({s.share:.0%})"
    )


def ending_text(run: Run) -> str:
    """How a sweep ended, and what to do next."""
    lines = [savings_text(run)]
    first = run.best
    if run.is_repetition:
        lines += doubts(run)
        if first is not None:
            lines.append(
                f"export it with: unlearn-tune export {run.path} --trial {first.number} --out {run.name}-best"
            )
    elif first is None:
        lines.append(
            "no trial kept every constraint: look at the reasons with "
            f"`unlearn-tune best {run.path}`, widen the space (smaller learning rates), or loosen the limits"
        )
    else:
        lines += [f"best is trial {first.number}; {doubt}" for doubt in doubts(run)]
        lines.append(f"export it with: unlearn-tune export {run.path} --out {run.name}-best")
    lines.append(f"finished in {duration(run.driver.elapsed_s, unknown='?')}")
    return "\n".join(lines)


def trial_text(run: Run, trial: TrialRecord) -> Group:
    """Everything about a trial."""
    proposed = {
        "start_from": "the sweep file (start_from)",
        "prior": "the prior of the sampler",
        "startup": f"{run.spec.sampler.name}, before its model is fitted",
        "sampler": f"{run.spec.sampler.name}, fitted to the trials before",
        "retry": f"retry, the parameters of trial {trial.retry_of}, which failed",
    }.get(trial.proposed_by or "", "unknown")
    has_stopped = trial.state == "INTERRUPTED"
    lines = [
        f"trial {trial.number} of {run.name}: {'interrupted' if has_stopped else trial.state}",
        f"proposed by: {proposed}",
        f"attempts: {trial.attempt}"
        + (f", {duration(trial.duration_s)}" if trial.duration_s else ""),
        f"why it ended: {trial.stopped_by or '-'}: "
        + (trial.reason or "it has not" + ("; its driver has, and resume runs it" * has_stopped)),
        "parameters:",
        *(f"  {name} = {value}" for name, value in trial.params.items()),
    ]
    if trial.metrics:
        lines.append(f"at step {trial.step} ({'feasible' if trial.feasible else 'infeasible'}):")
        report = trial.report_metrics or {}
        for name, value in trial.metrics.items():
            beside = f"   reporting split {report[name]:.4f}" if name in report else ""
            beside += _in_brackets(trial.report_intervals.get(name), name) if beside else ""
            lines.append(
                f"  {name} = {value:.4f}{_in_brackets(trial.intervals.get(name), name)}{beside}"
            )
        if trial.intervals:
            lines.append("  in brackets: 95 % intervals, by resampling rows")
    if trial.evaluation:
        lines.append("in its evaluation, the untouched model in brackets:")
        lines += [
            f"  {row.metric} = {score(row.after)} ({'-' if row.before is None else score(row.before)})"
            + (f"   {row.limit}{', broken' * row.is_broken}" if row.limit else "")
            for row in evaluation_rows(run, trial)
        ]
    history = run.history(trial.number) if trial.attempt else []
    if len(history) > 1:
        lines.append(f"curves over steps {history[0]['step']} to {history[-1]['step']}:")
        limited = run.spec.trial_selection().limited_metrics
        shown = (run.spec.objective.metric, "forget_nll", *limited)
        width = max(map(len, shown))
        for metric in shown:
            series = [number_or_nan(line["metrics"].get(metric)) for line in history]
            lines.append(
                f"  {metric:{width}} {sparkline(series)}  {series[0]:.3f} to {series[-1]:.3f}"
            )
    lines.append(f"folder: {run.path}/trials/{trial.number:04d}/attempt-{max(1, trial.attempt)}")
    lines.append(
        f"run it again: unlearn-tune train {run.path}/trials/{trial.number:04d}/"
        f"attempt-{max(1, trial.attempt)}/trial.yaml --out again"
    )
    return Group(*(Text(line) for line in lines))


def _in_brackets(ends: tuple[float, float] | None, metric: str) -> str:
    return f" ({between(ends, metric)})" if ends else ""


def sparkline(values: Sequence[float]) -> str:
    """One character for each value, from lowest to highest; a dot where it is not finite."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    if not finite:
        return "·" * len(values)
    low, high = min(finite), max(finite)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((v - low) * scale)] if v in finite else "·" for v in values)
