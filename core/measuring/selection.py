"""Which probe counts, and when a trial stops: pure rules over plain numbers.

The worker, the Optuna pruner and the resume of a sweep all decide with these functions, so that they
cannot disagree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from core.config import ConstraintConfig, PastTargetConfig, RetainGuardConfig, SelectionConfig

StoppedBy = Literal[
    "budget", "past_target", "stop_when", "retain_guard", "non_finite", "ranking_pruner"
]
"""Why a trial ended. ``budget`` is the ordinary end."""


_LOWEST_CLOSURE = -1.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one probe measured.

    Attributes:
        step: Optimiser steps made so far; 0 is the untouched model.
        metrics: Metric name to value; may hold non-finite values.
        seconds: Seconds since the trial began (monotonic clock).
        stopped_by: Set on the last probe of a trial that ended by its own rules.
        intervals: 95 % interval, lower and upper end, of each closure and drop; empty where none was
            measured.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: float
    stopped_by: StoppedBy | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GuardVerdict:
    """The retain guard's decision to stop."""

    stopped_by: StoppedBy
    metric: str
    value: float
    limit: float
    reason: str


def excesses(
    metrics: Mapping[str, float], constraints: Sequence[ConstraintConfig]
) -> dict[str, float]:
    """``metric - at_most`` for each constraint; a probe is feasible when none is above 0."""
    return {str(c.metric): metrics[c.metric] - c.at_most for c in constraints}


def is_feasible(metrics: Mapping[str, float], selection: SelectionConfig) -> bool:
    """Whether the objective is finite and every constraint holds (NaN never holds)."""
    return math.isfinite(metrics[selection.metric]) and all(
        excess <= 0.0 for excess in excesses(metrics, selection.constraints).values()
    )


def penalised_score(metrics: Mapping[str, float], selection: SelectionConfig) -> float:
    r"""Score of an infeasible probe, below any feasible one: :math:`-1 - \sum \max(0, m - \mathrm{limit})`.

    A non-finite excess counts as the guard's hard limit, so that the score stays a number.
    """
    worst = selection.retain_guard.hard_limit if selection.retain_guard else 1.0
    total = 0.0
    for excess in excesses(metrics, selection.constraints).values():
        total += max(0.0, excess) if math.isfinite(excess) else worst
    return -1.0 - total


def best_probe(probes: Sequence[Probe], selection: SelectionConfig) -> Probe | None:
    """The probe that gives a trial its value: the best feasible one, or the last if that is the rule.

    The first of equals wins. ``None`` if there is no feasible probe.
    """
    candidates = probes[-1:] if selection.select == "last" else probes
    best: Probe | None = None
    for probe in candidates:
        if is_feasible(probe.metrics, selection) and (
            best is None or probe.metrics[selection.metric] > best.metrics[selection.metric]
        ):
            best = probe
    return best


def running_score(probes: Sequence[Probe], selection: SelectionConfig) -> float:
    """What pruners and the sampler see after the last probe: the best feasible objective so far.

    While no probe is feasible it is the penalised score of the last one.
    """
    best = best_probe(probes, selection)
    if best is not None:
        return best.metrics[selection.metric]
    return penalised_score(probes[-1].metrics, selection)


def guard_verdict(
    series: Sequence[Mapping[str, float]], guard: RetainGuardConfig
) -> GuardVerdict | None:
    """Decide whether degradation of retained text stops the trial.

    Args:
        series: Metrics of the attempt's probes in order, without step 0; each holds ``guard.metrics``.
        guard: Limits, patience and grace, counted in probes.

    Returns:
        The verdict for the last probe, or ``None`` to go on. A non-finite metric, or one above
        ``hard_limit``, acts at once. Otherwise it acts after ``patience`` consecutive violating
        probes that lie after the first ``grace_steps``; a probe violates when any guarded metric is
        above ``limit``.
    """
    if not series:
        return None
    last = series[-1]
    for metric in guard.metrics:
        value = last[metric]
        if not math.isfinite(value):
            return GuardVerdict(
                stopped_by="non_finite",
                metric=metric,
                value=value,
                limit=guard.hard_limit,
                reason=f"{metric} is {value} at probe {len(series)}: the model diverged",
            )
        if value > guard.hard_limit:
            return GuardVerdict(
                stopped_by="retain_guard",
                metric=metric,
                value=value,
                limit=guard.hard_limit,
                reason=(
                    f"{metric} = {value:.3f} exceeds the hard limit {guard.hard_limit:g} "
                    f"at probe {len(series)}"
                ),
            )
    recent = series[max(guard.grace_steps, len(series) - guard.patience) :]
    if len(recent) < guard.patience:
        return None
    if not all(any(m[metric] > guard.limit for metric in guard.metrics) for m in recent):
        return None
    worst = max(guard.metrics, key=lambda metric: last[metric])
    return GuardVerdict(
        stopped_by="retain_guard",
        metric=worst,
        value=last[worst],
        limit=guard.limit,
        reason=(
            f"{worst} = {last[worst]:.3f} above the limit {guard.limit:g} "
            f"for {guard.patience} probes up to probe {len(series)}"
        ),
    )


def is_past_target(
    probes: Sequence[Probe],
    selection: SelectionConfig,
    rule: PastTargetConfig,
    *,
    target_nll: float,
) -> bool:
    """Whether the last ``rule.patience`` probes all overshot.

    A probe overshoots when the forget set's cross-entropy lies above the target and the objective is
    below the probe before.
    """
    if len(probes) <= rule.patience:
        return False
    pairs = list(pairwise(probes))[-rule.patience :]
    return all(
        now.metrics["forget_nll"] > target_nll
        and (
            now.metrics[selection.metric] < before.metrics[selection.metric]
            or now.metrics[selection.metric] <= _LOWEST_CLOSURE  # clipped: it cannot fall further
        )
        for before, now in pairs
    )
