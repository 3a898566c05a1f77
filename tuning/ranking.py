"""Which trials are best: their order, the Pareto front, and the rows in which both are shown."""

import math
from collections.abc import Sequence
from typing import Any

from core.store.durable import finite
from tuning.records import TrialRecord


def excess(trial: TrialRecord) -> float:
    """Largest ``metric - at_most`` over the constraints; negative is the distance to the limit."""
    return max(trial.violations.values(), default=0.0)


def ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished trials, best first: feasible ones by value, then the others by value."""
    judged = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    return sorted(
        judged, key=lambda t: (not is_candidate(t), not t.feasible, -(t.value or 0.0), t.number)
    )


def is_candidate(trial: TrialRecord) -> bool:
    """Whether a trial may be called best: complete, and every constraint kept."""
    return trial.state == "COMPLETE" and trial.feasible


def best(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best feasible trial, or ``None``."""
    first = ranked(trials)[:1]
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


def trial_rows(
    shown: Sequence[TrialRecord], *, among: Sequence[TrialRecord]
) -> list[dict[str, Any]]:
    """Trials as ``best --format json`` shows them, the binding shape; ``pareto`` marks the front of ``among``."""
    front = {t.number for t in pareto_front(among)}
    return [_row(trial, is_on_front=trial.number in front) for trial in shown]


def _row(trial: TrialRecord, *, is_on_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = finite(
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
    return row
