"""What a finished trial is told to the study: state, value, constraints and reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.config import SelectionConfig
from core.measuring.selection import (
    GuardVerdict,
    Probe,
    StoppedBy,
    best_probe,
    counted_excess,
    excesses,
    is_feasible,
    merit,
    penalised_score,
)

UNTOUCHED_CLOSURE = 0.0
"""The model before unlearning has closed nothing."""
UNTOUCHED_DROP = 2.0
"""It lies as far from its target, see :func:`~core.measuring.selection.drop_at_target`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is told, once.

    Attributes:
        state: COMPLETE with a value, or PRUNED.
        stopped_by: What ended the trial.
        reason: In words.
        value: Objective of the probe that counts; the penalised score if none is feasible.
        feasible: Whether that probe keeps every constraint.
        step: Its step.
        metrics: Its metrics.
        violations: How far each constraint is broken (``metric - at_most``, or ``at_least - metric``), finite,
            from that probe, or from the violating one of a trial that the guard stopped.
        steps: Optimiser steps made.
        intervals: 95 % interval of each closure and drop of that probe; empty where none was measured.
        value_interval: That of ``value``; ``None`` where none was measured, or no probe is feasible.
        is_minimized: Whether less of ``value`` is better.
    """

    state: Literal["COMPLETE", "PRUNED"]
    stopped_by: StoppedBy
    reason: str
    value: float
    feasible: bool
    step: int
    metrics: Mapping[str, float]
    violations: Mapping[str, float]
    steps: int
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    value_interval: tuple[float, float] | None = None
    is_minimized: bool = False

    @property
    def merit(self) -> float:
        """The value with the sign by which more is better."""
        return -self.value if self.is_minimized else self.value


def conclude(
    probes: Sequence[Probe], selection: SelectionConfig, verdict: GuardVerdict | None
) -> Outcome:
    """Judge a trial by its committed probes.

    A trial that was stopped without ever having had a feasible probe better than the untouched model is
    PRUNED, so that the sampler learns the boundary. One that had such a probe is COMPLETE with its
    value: the best settings live next to the limit. A stop by comparison with other trials is PRUNED, and so is
    a trial whose objective is no finite number at the probe that would count.

    Args:
        probes: At least one, in order.
        selection: The trial's rules.
        verdict: Why it was stopped from outside; ``None`` if it ended by its own rules.
    """
    last, best = probes[-1], best_probe(probes, selection)
    stopped_by = verdict.stopped_by if verdict else (last.stopped_by or "budget")
    untouched = UNTOUCHED_DROP if selection.is_minimized else UNTOUCHED_CLOSURE
    improved = best is not None and (
        merit(best.metrics[selection.metric], selection) > merit(untouched, selection)
    )
    is_pruned = stopped_by == "ranking_pruner" or (
        stopped_by in ("retain_guard", "non_finite") and not improved
    )
    chosen = best if best is not None and (improved or not is_pruned) else last
    if not is_pruned and not math.isfinite(chosen.metrics[selection.metric]):
        is_pruned, stopped_by = True, "non_finite"
    feasible = chosen is best and is_feasible(chosen.metrics, selection)
    value = (
        chosen.metrics[selection.metric] if feasible else penalised_score(chosen.metrics, selection)
    )
    return Outcome(
        state="PRUNED" if is_pruned else "COMPLETE",
        stopped_by=stopped_by,
        reason=(verdict.reason if verdict else _own_reason(stopped_by, last, selection.metric))
        + _landing(chosen),
        value=value,
        feasible=feasible,
        step=chosen.step,
        metrics=dict(chosen.metrics),
        violations=_finite_violations(
            chosen.metrics, selection, diverged=stopped_by == "non_finite" and not feasible
        ),
        steps=last.step,
        intervals=dict(chosen.intervals),
        value_interval=chosen.intervals.get(selection.metric) if feasible else None,
        is_minimized=selection.is_minimized,
    )


def _landing(chosen: Probe) -> str:
    factor = chosen.metrics.get("landing_factor")
    return "" if factor is None else f"; scaled back to {factor:.2f} it lies on its target"


def _finite_violations(
    metrics: Mapping[str, float], selection: SelectionConfig, *, diverged: bool
) -> dict[str, float]:
    worst = counted_excess(math.nan, selection)
    found = excesses(metrics, selection.constraints)
    return {
        metric: worst if diverged else counted_excess(excess, selection)
        for metric, excess in found.items()
    }


def _own_reason(stopped_by: StoppedBy, last: Probe, metric: str) -> str:
    if stopped_by == "past_target":
        return (
            f"forget cross-entropy {last.metrics['forget_nll']:.3f} lies past its target "
            "and the objective falls"
        )
    if stopped_by == "no_effect":
        return (
            f"no effect: its forget closure, {last.metrics['forget_closure']:.3f} at step {last.step}, stays within "
            "its noise"
        )
    if stopped_by == "stop_when":
        return f"every metric of stop.when is at or below its value at step {last.step}"
    if stopped_by == "non_finite":
        level, value = last.metrics["forget_nll"], last.metrics[metric]
        if math.isfinite(level) and not math.isfinite(value):
            return f"{metric} is {value} at step {last.step}: no number to judge it by"
        return f"forget cross-entropy is {level} at step {last.step}: the model diverged"
    return f"reached its budget of {last.step} steps"
