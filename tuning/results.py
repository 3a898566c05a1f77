"""What a run shows: the best trials, the Pareto front, counts and savings. Plain computation on records."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.store.durable import finite
from tuning.records import Run, TrialRecord
from tuning.time_left import time_left_s

if TYPE_CHECKING:
    import pandas

GUARD_STOPS = ("retain_guard", "non_finite")


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What stopping early saved.

    Attributes:
        guard_stopped: Trials that the retain guard stopped, whatever their state.
        past_target_stopped: Trials that stopped because they overshot.
        steps_saved: Optimiser steps not made, by either.
        steps_planned: Steps of all finished trials if nothing had stopped them.
    """

    guard_stopped: int
    past_target_stopped: int
    steps_saved: int
    steps_planned: int

    @property
    def share(self) -> float:
        """Saved share of the planned steps."""
        return self.steps_saved / self.steps_planned if self.steps_planned else 0.0


def excess(trial: TrialRecord) -> float:
    """Largest ``metric - at_most`` over the constraints; negative is the distance to the limit."""
    return max(trial.violations.values(), default=0.0)


def ranked(run: Run) -> list[TrialRecord]:
    """Finished trials, best first: feasible ones by value, then the others by value."""
    judged = [t for t in run.trials if t.value is not None and math.isfinite(t.value)]
    return sorted(
        judged, key=lambda t: (not is_candidate(t), not t.feasible, -(t.value or 0.0), t.number)
    )


def is_candidate(trial: TrialRecord) -> bool:
    """Whether a trial may be called best: complete, and every constraint kept."""
    return trial.state == "COMPLETE" and trial.feasible


def best(run: Run) -> TrialRecord | None:
    """The best feasible trial, or ``None``."""
    first = ranked(run)[:1]
    return first[0] if first and is_candidate(first[0]) else None


def pareto_front(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Feasible trials that no other beats in both objective (higher) and largest excess (lower).

    Only COMPLETE trials count: one that a ranking pruner stopped may have had a feasible probe.
    """
    feasible = [t for t in trials if t.state == "COMPLETE" and t.feasible and t.value is not None]

    def dominates(a: TrialRecord, b: TrialRecord) -> bool:
        assert a.value is not None and b.value is not None
        better = a.value > b.value or excess(a) < excess(b)
        return a.value >= b.value and excess(a) <= excess(b) and better

    front = [t for t in feasible if not any(dominates(o, t) for o in feasible)]
    return sorted(front, key=lambda t: (-(t.value or 0.0), t.number))


def counts(run: Run) -> dict[str, int]:
    """Trials by state, in the words of ``status``."""
    by_state = Counter(t.state for t in run.trials)
    waiting = max(0, run.target - len(run.trials)) + by_state["WAITING"]
    return {
        "complete": by_state["COMPLETE"],
        "pruned": by_state["PRUNED"],
        "failed": by_state["FAIL"],
        "running": by_state["RUNNING"],
        "waiting": waiting,
    }


def savings(run: Run) -> Savings:
    """Steps saved by the retain guard and by ``past_target``."""
    planned = run.spec.budget.max_steps
    finished = [t for t in run.trials if t.steps is not None]
    early = [t for t in finished if t.stopped_by in (*GUARD_STOPS, "past_target")]
    return Savings(
        guard_stopped=sum(t.stopped_by in GUARD_STOPS for t in finished),
        past_target_stopped=sum(t.stopped_by == "past_target" for t in finished),
        steps_saved=sum(planned - (t.steps or 0) for t in early),
        steps_planned=planned * len(finished),
    )


def eta_s(run: Run) -> float | None:
    """Seconds until the sweep ends, from the durations so far; ``None`` before the first trial ends."""
    durations = [t.duration_s for t in run.trials if t.duration_s]
    c = counts(run)
    at_once = max(1, int(run.notes.get("concurrent", 1)))
    return time_left_s(durations, waiting=c["waiting"], running=c["running"], at_once=at_once)


def best_json(run: Run, *, top: int | None = None) -> dict[str, Any]:
    """``best --format json``, the binding shape."""
    front = {t.number for t in pareto_front(run.trials)}
    shown = ranked(run)
    rest = [t for t in run.trials if t not in shown]
    chosen = (shown + rest)[:top]
    return {
        "run": run.name,
        "objective": {
            "metric": run.spec.objective.metric,
            "direction": run.spec.objective.direction,
        },
        "constraints": [c.model_dump() for c in run.spec.constraints],
        "trials": [_trial_json(t, is_on_front=t.number in front) for t in chosen],
    }


def status_json(run: Run) -> dict[str, Any]:
    """``status --json``, the binding shape."""
    saved, first = savings(run), best(run)
    return {
        "run": run.name,
        "state": run.state,
        "target": run.target,
        "counts": counts(run),
        "guard": {
            "stopped": saved.guard_stopped,
            "past_target": saved.past_target_stopped,
            "steps_saved": saved.steps_saved,
            "steps_planned": saved.steps_planned,
        },
        "best": None
        if first is None
        else _trial_json(first, is_on_front=first in pareto_front(run.trials)),
        "elapsed_s": run.elapsed_s,
        "eta_s": eta_s(run) if run.state == "running" else None,
    }


def to_dataframe(run: Run) -> "pandas.DataFrame":
    """One row for each trial; parameters and metrics as columns ``params.*``, ``metrics.*``."""
    import pandas

    rows = []
    front = {t.number for t in pareto_front(run.trials)}
    for trial in run.trials:
        row = _trial_json(trial, is_on_front=trial.number in front)
        for group in ("params", "metrics", "report_metrics"):
            values = row.pop(group) or {}
            row |= {f"{group}.{key}": value for key, value in values.items()}
        rows.append(row)
    return pandas.DataFrame(rows)


def _trial_json(trial: TrialRecord, *, is_on_front: bool) -> dict[str, Any]:
    shown: dict[str, Any] = finite(
        {
            "number": trial.number,
            "state": trial.state,
            "stopped_by": trial.stopped_by,
            "reason": trial.reason,
            "feasible": trial.feasible,
            "pareto": is_on_front,
            "value": trial.value,
            "params": dict(trial.params),
            "metrics": dict(trial.metrics),
            "report_metrics": dict(trial.report_metrics) if trial.report_metrics else None,
            "step": trial.step,
            "duration_s": trial.duration_s,
            "attempt": trial.attempt,
            "adapter": trial.adapter,
        }
    )
    return shown
