"""Landing: a trial that ends past its target is scaled back onto it. Pure rules over plain numbers.

The straight way back to the target is shorter than the trained one: where both have forgotten as much, the scaled
difference has hurt retained text less.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from core.config import RetainGuardConfig, SelectionConfig
from core.measuring.selection import Probe, guard_verdict, violates

EVALUATIONS: Final = 4
"""Factors that are looked at, at most."""

TOLERANCE: Final = 0.01
"""Part of the way to the target within which a factor lands on it."""

_FIRST_POWER: Final = 2.0
"""Power of the factor by which the level is taken to rise before two levels have shown it."""


def landing_factor(
    forget_level: Callable[[float], float], *, before: float, target: float, whole: float
) -> float:
    r"""Share of a trained difference at which the forget set lies on its target.

    .. math:: f(c) = f^*, \quad 0 < c < 1, \quad f(0) = f_0 < f^* < f(1)

    The way :math:`(f(c) - f_0) / (f^* - f_0)` is taken for a power of c through the two factors whose levels are
    nearest to the target; where this leads out of the narrowest bracket that is known, the bracket is halved. The
    level need not rise everywhere: a bracket always holds a factor on target.

    Args:
        forget_level: Level of the forget set at a factor, nats per token; asked :data:`EVALUATIONS` times at
            most, never for 0 or 1. What is not finite counts as past the target.
        before: Level of the untouched model.
        target: Level that forgetting aims at, above it.
        whole: Level with the whole difference, above the target.

    Returns:
        Of the factors that were looked at, and 1, the one whose level is nearest to the target.

    Raises:
        ValueError: If ``before < target < whole`` does not hold.
    """
    if not before < target < whole:
        raise ValueError(
            f"before < target < whole must hold, got before={before} target={target} whole={whole}"
        )

    def way(level: float) -> float:
        """1 on target."""
        return (level - before) / (target - before) if math.isfinite(level) else math.inf

    ways = {1.0: way(whole)}
    short, past = 0.0, 1.0
    while len(ways) <= EVALUATIONS and min(abs(w - 1.0) for w in ways.values()) > TOLERANCE:
        factor = _by_power(ways)
        if not short < factor < past:
            factor = (short + past) / 2.0
        ways[factor] = way(forget_level(factor))
        short, past = (factor, past) if ways[factor] < 1.0 else (short, factor)
    return min(ways, key=lambda factor: abs(ways[factor] - 1.0))


def _by_power(ways: dict[float, float]) -> float:
    """Where the way is 1, if it is a power of the factor; NaN if it cannot be one."""
    known = [factor for factor, way in ways.items() if 0.0 < way < math.inf]
    known.sort(key=lambda factor: abs(ways[factor] - 1.0))
    if not known:
        return math.nan
    power, nearest = _FIRST_POWER, known[0]
    if len(known) > 1:
        other = known[1]
        power = math.log(ways[nearest] / ways[other]) / math.log(nearest / other)
    return float(nearest * ways[nearest] ** (-1.0 / power)) if power > 0.0 else math.nan


def may_land(probes: Sequence[Probe], selection: SelectionConfig, *, target_nll: float) -> bool:
    """Whether a trial ends with the last of its probes, past a target that it reached before it broke the guard.

    It ends by its own rules, or because the retain guard stops it, which is decided here as whoever runs the trial
    will decide it. One that broke the guard first would land beyond a limit, or on it.
    """
    last, guard = probes[-1], selection.retain_guard
    verdict = guard_verdict([p.metrics for p in probes], guard) if guard is not None else None
    ends = last.stopped_by is not None or verdict is not None
    if not ends or not math.isfinite(last.metrics["forget_nll"]):
        return False
    if verdict is not None and verdict.stopped_by == "non_finite":
        return False
    past = [p.metrics["forget_nll"] > target_nll for p in probes]
    return past[-1] and any(past[: _first_of_last_violations(probes, guard) + 1])


def keeps_the_guard(landed: Probe, probes: Sequence[Probe], selection: SelectionConfig) -> bool:
    """Whether a landed trial keeps the guard's limits: surely, if its last probe broke one.

    Surely means with the whole 95 % interval of each guarded metric: what lies at a limit on the probe rows breaks
    it on others.
    """
    guard = selection.retain_guard
    if guard is None:
        return True
    if not violates(probes[-1].metrics, guard):
        return not violates(landed.metrics, guard)
    return all(
        metric in landed.intervals
        and all(guard.excess(metric, end, guard.limit) <= 0.0 for end in landed.intervals[metric])
        for metric in guard.metrics
    )


def _first_of_last_violations(probes: Sequence[Probe], guard: RetainGuardConfig | None) -> int:
    """Place of the first of the violating probes that lead up to the last; of the last if it violates nothing."""
    place = len(probes) - 1
    while guard is not None and place > 0 and violates(probes[place - 1].metrics, guard):
        place -= 1
    return place
