"""Which probe counts, and when a trial stops: pure rules over plain numbers.

The worker, the Optuna pruner and the resume of a sweep all decide with these functions, so that they
cannot disagree.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal

from core.config import (
    METRICS,
    ConstraintConfig,
    LimitedMetric,
    NoEffectConfig,
    PastTargetConfig,
    RetainGuardConfig,
    SelectionConfig,
)

StoppedBy = Literal[
    "budget",
    "past_target",
    "no_effect",
    "stop_when",
    "retain_guard",
    "non_finite",
    "ranking_pruner",
    "trial_timeout",
]
"""Why a trial ended. ``budget`` is the ordinary end."""


_LOWEST_CLOSURE: Final = -1.0
_LARGEST_DROP: Final = 3.0

CLOSURE_AT_TARGET: Final = 0.95
"""From this forget closure on the forget set counts as on its target: a twentieth of the way is within its noise."""


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
        resumed_at: Step of the checkpoint that the attempt went on from; absent where it began at step 0.
        landed: The same weights scaled back onto the target, where the trial ends past it: a candidate of its
            own, with ``landing_factor`` among its metrics. One that was overtaken is short of the target.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: float
    stopped_by: StoppedBy | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    n_rows: Mapping[str, int] = field(default_factory=dict)
    is_overtaken: bool = False
    resumed_at: int | None = None
    landed: "Probe | None" = None

    @property
    def is_carried(self) -> bool:
        """Whether an earlier attempt made it, and this one, which went on after it, tells it again."""
        return self.resumed_at is not None and self.step <= self.resumed_at


def probe_of(line: Mapping[str, Any]) -> Probe:
    """The probe of a committed line; what it landed on says again only what was measured there."""
    landed = line.get("landed")
    return Probe(
        step=line["step"],
        metrics={name: float(value) for name, value in line["metrics"].items()},
        seconds=line["seconds"],
        stopped_by=line["stopped_by"],
        intervals={name: (low, high) for name, (low, high) in line.get("intervals", {}).items()},
        skipped=tuple(line.get("skipped", ())),
        n_rows=line.get("n_rows", {}),
        is_overtaken=line.get("is_overtaken", False),
        resumed_at=line.get("resumed_at"),
        landed=None if landed is None else probe_of({**line, **landed, "landed": None}),
    )


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
    """Whether the model has not diverged, and every constraint holds."""
    return not has_diverged(metrics, selection) and all(
        excess <= 0.0 for excess in excesses(metrics, selection.constraints).values()
    )


def has_diverged(metrics: Mapping[str, float], selection: SelectionConfig) -> bool:
    """Whether a number that judges the model is NaN or infinite, of whatever sign: then none of its numbers counts.

    These are the objective, the forget set's cross-entropy, and the metrics that are limited or guarded.
    """
    judged = {selection.metric, "forget_nll", *selection.limited_metrics}
    return not all(math.isfinite(metrics[name]) for name in judged & metrics.keys())


def counted_excess(excess: float, selection: SelectionConfig) -> float:
    """An excess as it is told and ranked by: finite, and the worst where it is no number.

    The worst is :data:`WORST_EXCESS`, or the guard's hard limit if that is larger, so that no trial that
    diverged ranks above one whose damage could be measured.
    """
    guard = selection.retain_guard
    worst = max(WORST_EXCESS, guard.hard_limit if guard else 0.0)
    return min(excess, worst) if math.isfinite(excess) else worst


def merit(value: float, selection: SelectionConfig) -> float:
    """A value of the objective with the sign by which more is better."""
    return -value if selection.is_minimized else value


def worst_value(selection: SelectionConfig) -> float:
    """The worst that a feasible probe can be worth; what is penalised is worse."""
    return _LARGEST_DROP if selection.is_minimized else _LOWEST_CLOSURE


def drop_at_target(metrics: Mapping[str, float], selection: SelectionConfig) -> float:
    r"""Damage at the target, or how far from it: less is better.

    .. math::
        \begin{cases}
        \min(1, \max_m d_m) & c \ge 0.95 \\
        2 - c & \text{otherwise}
        \end{cases}

    with c the ``forget_closure`` and :math:`d_m` the damage to each metric that is limited or guarded, or to
    ``retain_drop`` and ``general_drop`` where none is: the metric itself, and for ``retain_utility`` its fall
    below 1. So a model on its target, by training or by landing, lies below 1, and every other between 1 and
    3, by its closure.

    Returns:
        A number of at most 3; NaN where what it is made of is no number.
    """
    closure = metrics["forget_closure"]
    if not closure >= CLOSURE_AT_TARGET:
        return 2.0 - closure
    damages = [damage(metric, metrics[metric]) for metric in damaged_metrics(selection)]
    return math.nan if any(map(math.isnan, damages)) else min(1.0, max(damages))


def damaged_metrics(selection: SelectionConfig) -> tuple[LimitedMetric, ...]:
    """Metrics whose largest damage ``drop_at_target`` is."""
    return selection.limited_metrics or ("retain_drop", "general_drop")


def damage(metric: LimitedMetric, value: float) -> float:
    """How far a limited metric lies from that of the untouched model; positive is worse."""
    return 1.0 - value if METRICS[metric].better == "up" else value


def penalised_score(metrics: Mapping[str, float], selection: SelectionConfig) -> float:
    r"""Score of an infeasible probe, worse than any feasible one: :math:`-1 - \sum \max(0, m - \mathrm{limit})`.

    Of an objective that is minimised :math:`3 + \sum \max(0, m - \mathrm{limit})`, see :func:`drop_at_target`.
    Each excess is that of :func:`counted_excess`; a model that has diverged costs the worst one.
    """
    found = [*excesses(metrics, selection.constraints).values()]
    total = sum(max(0.0, counted_excess(excess, selection)) for excess in found)
    if has_diverged(metrics, selection):
        total = max(total, counted_excess(math.nan, selection))
    return worst_value(selection) + (total if selection.is_minimized else -total)


def best_probe(probes: Sequence[Probe], selection: SelectionConfig) -> Probe | None:
    """The probe that gives a trial its value: the best feasible one, or the last if that is the rule.

    What a probe landed on is a candidate after it. The first of equals wins. ``None`` if there is no feasible
    probe. One that was overtaken is no candidate.
    """
    return _best((p for p in _candidates(probes, selection) if not p.is_overtaken), selection)


def _candidates(probes: Sequence[Probe], selection: SelectionConfig) -> Iterator[Probe]:
    for probe in probes[-1:] if selection.select == "last" else probes:
        yield probe
        if probe.landed is not None:
            yield probe.landed


def _best(candidates: Iterable[Probe], selection: SelectionConfig) -> Probe | None:
    best: Probe | None = None
    for candidate in candidates:
        if is_feasible(candidate.metrics, selection) and (
            best is None or _merit_of(candidate, selection) > _merit_of(best, selection)
        ):
            best = candidate
    return best


def _merit_of(probe: Probe, selection: SelectionConfig) -> float:
    return merit(probe.metrics[selection.metric], selection)


def counted_share(metrics: Mapping[str, float]) -> float:
    """Share of the trained difference that a probe's metrics were measured with."""
    return metrics.get("landing_factor", metrics.get("calibration_factor", 1.0))


def running_score(probes: Sequence[Probe], selection: SelectionConfig) -> float:
    """What pruners and the sampler see after the last probe: the best feasible objective so far.

    Probes that were overtaken are among them. While no probe is feasible it is the penalised score of the last
    one.
    """
    best = _best(_candidates(probes, selection), selection)
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
    if len(recent) < guard.patience or not all(violates(metrics, guard) for metrics in recent):
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


def violates(metrics: Mapping[str, float], guard: RetainGuardConfig) -> bool:
    """Whether any guarded metric lies beyond the guard's limit."""
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
            _merit_of(now, selection) < _merit_of(before, selection)
            or _merit_of(now, selection) <= merit(worst_value(selection), selection)  # clipped
        )
        for before, now in pairs
    )


def has_no_effect(
    probes: Sequence[Probe],
    selection: SelectionConfig,
    rule: NoEffectConfig,
    *,
    target_nll: float,
    warmup_steps: int = 0,
    step: int | None = None,
) -> bool:
    """Whether nothing was forgotten for the rule's share of the steps that follow the warm-up.

    Nothing is forgotten at a probe where the forget set is short of its target and the lower end of the closure's
    95 % interval is not above ``rule.at_most``. A probe without an interval says nothing, so that the trial goes
    on. The share is one of steps, so that a probe that was left out delays nothing; what it would have shown is
    not known, and it counts as the others. None is left out at which this may end the trial: asked with the
    ``step`` at which one is due, the answer is whether the probes so far would have it end there.
    """
    trained_fully = (probes[-1].step if step is None else step) - warmup_steps
    if trained_fully < rule.after * (selection.max_steps - warmup_steps):
        return False
    if trained_fully <= 0:
        return False
    return all(
        probe.metrics["forget_nll"] <= target_nll
        and probe.intervals.get("forget_closure", (math.inf, math.inf))[0] <= rule.at_most
        for probe in probes
    )
