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
        skipped: Steps since the probe before at which one was due and was left out.
        n_rows: Rows of each set that the metrics are of; empty where that is not recorded, and all were read.
        is_overtaken: The next probe is foreseeably better, and this one, which may be of a part of the rows and
            whose adapter is not kept, never counts.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: float
    stopped_by: StoppedBy | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    n_rows: Mapping[str, int] = field(default_factory=dict)
    is_overtaken: bool = False


@dataclass(frozen=True, kw_only=True)
class GuardVerdict:
    """The retain guard's decision to stop."""

    stopped_by: StoppedBy
    metric: str
    value: float
    limit: float
    reason: str


WORST_EXCESS = 10.0
"""What an excess counts at most: beyond it nothing is told apart. Text that costs ten nats per token more than
before is predicted about as badly as by guessing, and a diverged model is no better than that."""


def excesses(
    metrics: Mapping[str, float], constraints: Sequence[ConstraintConfig]
) -> dict[str, float]:
    """How far each constraint is broken; a probe is feasible when none is above 0.

    ``metric - at_most``, or ``at_least - metric``.
    """
    return {str(c.metric): c.excess(metrics[c.metric]) for c in constraints}


def is_feasible(metrics: Mapping[str, float], selection: SelectionConfig) -> bool:
    """Whether the objective is finite and every constraint holds (NaN never holds)."""
    return math.isfinite(metrics[selection.metric]) and all(
        excess <= 0.0 for excess in excesses(metrics, selection.constraints).values()
    )


def counted_excess(excess: float, selection: SelectionConfig) -> float:
    """An excess as it is told and ranked by: finite, and the worst where it is no number.

    The worst is :data:`WORST_EXCESS`, or the guard's hard limit if that is larger, so that no trial that
    diverged ranks above one whose damage could be measured.
    """
    guard = selection.retain_guard
    worst = max(WORST_EXCESS, guard.hard_limit if guard else 0.0)
    return min(excess, worst) if math.isfinite(excess) else worst


def penalised_score(metrics: Mapping[str, float], selection: SelectionConfig) -> float:
    r"""Score of an infeasible probe, below any feasible one: :math:`-1 - \sum \max(0, m - \mathrm{limit})`.

    Each excess is that of :func:`counted_excess`; an objective that is no number costs the worst one.
    """
    found = [*excesses(metrics, selection.constraints).values()]
    total = sum(max(0.0, counted_excess(excess, selection)) for excess in found)
    if not math.isfinite(metrics[selection.metric]):
        total = max(total, counted_excess(math.nan, selection))
    return -1.0 - total


def best_probe(probes: Sequence[Probe], selection: SelectionConfig) -> Probe | None:
    """The probe that gives a trial its value: the best feasible one, or the last if that is the rule.

    The first of equals wins. ``None`` if there is no feasible probe. One that was overtaken is no candidate.
    """
    return _best([probe for probe in probes if not probe.is_overtaken], selection)


def _best(probes: Sequence[Probe], selection: SelectionConfig) -> Probe | None:
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

    Probes that were overtaken are among them. While no probe is feasible it is the penalised score of the last
    one.
    """
    best = _best(probes, selection)
    if best is not None:
        return best.metrics[selection.metric]
    return penalised_score(probes[-1].metrics, selection)


def guarded_series(probes: Sequence[Probe]) -> dict[int, Mapping[str, float]]:
    """Metrics that the retain guard reads, by step in order: of each probe, and of those left out.

    A probe is left out only where it foreseeably keeps every limit, after one that does. It counts as the
    one before it, so that patience and grace count the same probes as if it had been measured. Overshoot
    needs no such stand-in: what was left out lies before the target, and is in no run of overshooting
    probes.
    """
    series: dict[int, Mapping[str, float]] = {}
    for i, probe in enumerate(probes):
        series |= dict.fromkeys(probe.skipped, probes[i - 1].metrics)
        series[probe.step] = probe.metrics
    return series


def guard_verdict(
    series: Sequence[Mapping[str, float]], guard: RetainGuardConfig
) -> GuardVerdict | None:
    """Decide whether degradation of retained text stops the trial.

    Args:
        series: Metrics of the attempt's probes in order, without step 0; each holds ``guard.metrics``. See
            :func:`guarded_series`.
        guard: Limits, patience and grace, counted in probes.

    Returns:
        The verdict for the last probe, or ``None`` to go on. A non-finite metric, or one above
        ``hard_limit``, acts at once. Otherwise it acts after ``patience`` consecutive violating
        probes that lie after the first ``grace_steps``; a probe violates when any guarded metric is
        beyond ``limit``.
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
                limit=guard.bound(metric, guard.hard_limit),
                reason=f"{metric} is {value} at probe {len(series)}: the model diverged",
            )
        if guard.excess(metric, value, guard.hard_limit) > 0.0:
            bound = guard.bound(metric, guard.hard_limit)
            return GuardVerdict(
                stopped_by="retain_guard",
                metric=metric,
                value=value,
                limit=bound,
                reason=(
                    f"{metric} = {value:.3f} {'exceeds' if value > bound else 'is below'} the hard limit "
                    f"{bound:g} at probe {len(series)}"
                ),
            )
    recent = series[max(guard.grace_steps, len(series) - guard.patience) :]
    if len(recent) < guard.patience or not all(_violates(metrics, guard) for metrics in recent):
        return None
    worst = max(guard.metrics, key=lambda metric: guard.excess(metric, last[metric], guard.limit))
    bound = guard.bound(worst, guard.limit)
    return GuardVerdict(
        stopped_by="retain_guard",
        metric=worst,
        value=last[worst],
        limit=bound,
        reason=(
            f"{worst} = {last[worst]:.3f} {'above' if last[worst] > bound else 'below'} the limit {bound:g} "
            f"for {guard.patience} probes up to probe {len(series)}"
        ),
    )


def _violates(metrics: Mapping[str, float], guard: RetainGuardConfig) -> bool:
    return any(guard.excess(m, metrics[m], guard.limit) > 0.0 for m in guard.metrics)


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
