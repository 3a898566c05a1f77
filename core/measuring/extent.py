"""How much is measured of a trial: which rows its probes read, and which probes it leaves out.

Pure rules over plain numbers, as those of :mod:`core.measuring.selection`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from core.config import ConstraintMetric, SelectionConfig, metric_facts
from core.measuring.selection import CLOSURE_AT_TARGET, Probe

GROWTH: Final = 1.5
"""g: how much larger than the last increase the next one is taken to be at most. On recorded trials 1.5 changed no
outcome; 1 did."""


CLEAR_RISE: Final = 0.02
"""From one probe to the next a closure rises clearly by more than this: less may be a plateau, where the next is no
better."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What ``selection.rows_per_probe`` and ``selection.skip_probes`` come to on a device.

    Attributes:
        adaptive: Retain and general rows are read until every limit is decided; otherwise all are.
        skips: Probes that foreseeably decide nothing are left out, and those that the next one foreseeably
            betters are no candidates.
    """

    adaptive: bool
    skips: bool

    @classmethod
    def of(cls, selection: SelectionConfig, *, on_gpu: bool) -> "Extent":
        """Resolve ``auto``.

        On a GPU all rows of a probe are one small forward pass, and reading them little by little costs more
        passes; a probe that is left out saves its passes on any device.
        """
        rows, skips = selection.rows_per_probe, selection.skip_probes
        can_stop_early = selection.metric != "forget_closure_at_utility" and not on_gpu
        return cls(
            adaptive=can_stop_early if rows == "auto" else rows == "adaptive",
            skips=selection.is_foreseeable if skips == "auto" else skips,
        )


def reaches_nothing(
    probes: Sequence[Probe],
    selection: SelectionConfig,
    *,
    untouched: Mapping[str, float],
    target: Mapping[str, float],
    ahead: int,
) -> bool:
    r"""Whether the next probes foreseeably reach neither the target nor a limit.

    For the forget set's way to the target, and for each limited damage,

    .. math:: x_k + (g + \dots + g^n) \max(0, \Delta_k) < \mathrm{bound}

    where :math:`\Delta_k` is the last increase: each of the next n is taken to be at most :math:`g` times the one
    before. Where the probe before the last was left out, its increase is not known; the last one is then taken to
    be the larger part of the two, :math:`g / (1 + g)`. Damage is always looked at two probes ahead, for it bends
    upward; and after the first probe it is taken to grow with the square of the steps,
    :math:`3^2 x_1 < \mathrm{bound}`: near the untouched model, where it begins at rest, it has hardly a part of
    first order.

    With n = 2 the next probe can be left out: neither it nor the one after it is stopped or past the target, and
    the later one is the better. So the target of ``drop_at_target`` begins where it turns into a damage, at a
    closure of :data:`~core.measuring.selection.CLOSURE_AT_TARGET`: up to there it is better the further the way.
    What a probe left out means for the rules that count probes follows: it kept every limit, and has not overshot;
    see :func:`~core.measuring.selection.guarded_series`.

    Args:
        probes: Those measured so far, in order, at least one.
        selection: Objective, constraints and guard.
        untouched: Metrics of the target model, before the first probe.
        target: Levels that forgetting aims at: ``forget_nll`` and ``forget_accuracy``.
        ahead: n of the way, 1 or 2.

    Returns:
        ``False`` also where anything is not finite.
    """
    last, before, ends = probes[-1], _before(probes, untouched), (untouched, target)
    of_way = _growth(after_skip=bool(last.skipped), ahead=ahead)
    of_damage = _growth_of_damage(len(probes), after_skip=bool(last.skipped))
    courses = [
        *((of_way, *course) for course in _ways(last.metrics, before, selection, ends)),
        *((of_damage, *course) for course in _damages(last.metrics, before, selection)),
    ]
    return math.isfinite(last.metrics["forget_nll"]) and all(
        now + growth * max(0.0, now - then) < bound for growth, now, then, bound in courses
    )


def watersheds(
    probes: Sequence[Probe],
    selection: SelectionConfig,
    *,
    untouched: Mapping[str, float],
    after_skip: bool,
) -> Iterator[tuple[ConstraintMetric, float]]:
    r"""Values of the next probe's damages above which something foreseeably breaks a limit, and below which not.

    With the damage p at the probe before and a growth factor f, :math:`x + f (x - p) < b` where x lies below

    .. math:: \frac{b + f p}{1 + f}

    An estimate of x from a part of the rows must lie surely on one side of it before foresight relies on it.

    Args:
        probes: Those measured so far, without the one that is asked about.
        selection: Constraints and guard.
        untouched: Metrics of the target model.
        after_skip: Whether a probe was left out since the last of them.
    """
    before = probes[-1].metrics if probes else untouched
    for metric, limit in limits(selection):
        sign = _sign(metric)
        bound, then = sign * limit, sign * before[metric]
        growth = _growth_of_damage(len(probes) + 1, after_skip=after_skip)
        if then < bound:
            yield metric, sign * (bound + growth * then) / (1.0 + growth)


def _growth(*, after_skip: bool, ahead: int) -> float:
    """By how many times the last increase the way grows up to the n-th probe ahead."""
    share = GROWTH / (1.0 + GROWTH) if after_skip else 1.0
    return share * sum(GROWTH**n for n in range(1, ahead + 1))


def _growth_of_damage(n_probes: int, *, after_skip: bool) -> float:
    """The same of a damage, up to the second probe ahead."""
    return 3.0**2 - 1.0 if n_probes == 1 else _growth(after_skip=after_skip, ahead=2)


def is_overtaken(
    probes: Sequence[Probe],
    selection: SelectionConfig,
    *,
    untouched: Mapping[str, float],
    target: Mapping[str, float],
) -> bool:
    """Whether the next probe is foreseeably better than the last of ``probes``, which therefore is no candidate.

    The closure rises clearly, of ``drop_at_target`` that of the forget set, and by the next probe nothing is
    reached: see :func:`reaches_nothing`, also for the arguments. Never where the last probe counts, whichever it is.
    """
    before = _before(probes, untouched)
    closure = "forget_closure" if selection.is_minimized else selection.metric
    rise = probes[-1].metrics[closure] - before[closure]
    return (
        selection.select != "last"
        and rise > CLEAR_RISE
        and reaches_nothing(probes, selection, untouched=untouched, target=target, ahead=1)
    )


def _before(probes: Sequence[Probe], untouched: Mapping[str, float]) -> Mapping[str, float]:
    return probes[-2].metrics if len(probes) > 1 else untouched


_Course = tuple[float, float, float]
"""A number now, before, and its bound, all turned so that it rises to it."""


def _ways(
    now: Mapping[str, float],
    before: Mapping[str, float],
    selection: SelectionConfig,
    ends: tuple[Mapping[str, float], Mapping[str, float]],
) -> Iterator[_Course]:
    """The forget set's way to the target: from one of ``ends`` to the other."""
    begin, target = ends
    bound = target["forget_nll"]
    if selection.is_minimized:
        bound -= (1.0 - CLOSURE_AT_TARGET) * (bound - begin["forget_nll"])
    yield now["forget_nll"], before["forget_nll"], bound
    if selection.metric == "accuracy_closure":
        yield -now["forget_accuracy"], -before["forget_accuracy"], -target["forget_accuracy"]


def _damages(
    now: Mapping[str, float], before: Mapping[str, float], selection: SelectionConfig
) -> Iterator[_Course]:
    """Every limited damage."""
    for metric, bound in limits(selection):
        sign = _sign(metric)
        yield sign * now[metric], sign * before[metric], sign * bound


def _sign(metric: ConstraintMetric) -> float:
    """With it a metric rises to its bound."""
    return -1.0 if metric_facts(metric).better == "up" else 1.0


def limits(selection: SelectionConfig) -> Iterator[tuple[ConstraintMetric, float]]:
    """Each value of a metric at which something is decided: by a constraint, by the guard, by its hard limit."""
    for constraint in selection.constraints:
        assert constraint.metric != "auto"  # validated
        yield constraint.metric, constraint.limit
    guard = selection.retain_guard
    for metric in guard.metrics if guard else ():
        assert guard is not None
        assert metric != "auto"
        yield metric, guard.bound(metric, guard.limit)
        yield metric, guard.bound(metric, guard.hard_limit)
