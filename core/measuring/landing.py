"""Landing: a trial that ends past its target is scaled back onto it. Pure rules over plain numbers.

The straight way back to the target is shorter than the trained one: where both have forgotten as much, the scaled
difference has hurt retained text less.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from core.config import RetainGuardConfig, SelectionConfig
from core.measuring.selection import Probe, guard_verdict, guarded_series, violates

EVALUATIONS: Final = 4
"""Factors that are looked at, at most."""

TOLERANCE: Final = 0.01
"""Part of the way to the target within which a factor lands on it."""

_LOWEST_POWER: Final = 0.5
"""A lower one is no way to the target: the level hardly rises between the factors that show it, or falls."""


def landing_factor(
    forget_level: Callable[[float], float],
    *,
    before: float,
    target: float,
    whole: float,
    first: float,
) -> float:
    r"""Share of a trained difference at which the forget set lies on its target.

    .. math:: f(c) = f^*, \quad 0 < c < 1, \quad f(0) = f_0 < f^* < f(1)

    The way :math:`(f(c) - f_0) / (f^* - f_0)` is taken for a power of c, through the two factors whose levels are
    nearest to the target or through the ends of the narrowest bracket that is known; where neither leads into the
    bracket, it is halved. The level need not rise everywhere: a bracket always holds a factor on target.

    Args:
        forget_level: Level of the forget set at a factor, nats per token; asked :data:`EVALUATIONS` times at
            most, never for 0 or 1. What is not finite counts as past the target.
        before: Level of the untouched model.
        target: Level that forgetting aims at, above it.
        whole: Level with the whole difference, above the target.
        first: Where to look first, see :func:`share_of_the_path`.

    Returns:
        Of the factors that were looked at, and 1, the one whose level is nearest to the target.

    Raises:
        ValueError: If ``before < target < whole`` or ``0 < first < 1`` does not hold.
    """
    if not before < target < whole:
        raise ValueError(
            f"before < target < whole must hold, got before={before} target={target} whole={whole}"
        )
    if not 0.0 < first < 1.0:
        raise ValueError(f"first must lie between 0 and 1, got {first}")

    def way(level: float) -> float:
        """1 on target."""
        return (level - before) / (target - before) if math.isfinite(level) else math.inf

    ways = {1.0: way(whole)}
    short, past, guesses = 0.0, 1.0, [first]
    while len(ways) <= EVALUATIONS and min(abs(w - 1.0) for w in ways.values()) > TOLERANCE:
        factor = next((guess for guess in guesses if short < guess < past), None)
        if factor is None:
            break  # no number lies between the ends of the bracket
        ways[factor] = way(forget_level(factor))
        short, past = (factor, past) if ways[factor] < 1.0 else (short, factor)
        guesses = [*_by_power(ways, past), (short + past) / 2.0]
    return min(ways, key=lambda factor: abs(ways[factor] - 1.0))


def _by_power(ways: Mapping[float, float], past: float) -> Iterator[float]:
    """Where the way is 1, if it is a power of the factor, the likeliest first.

    Through the two factors that are nearest to the target, then through ``past``, the lowest that is past it, and
    its neighbour: the one below if there is one.
    """
    known = sorted(factor for factor, way in ways.items() if 0.0 < way < math.inf)
    if len(known) < 2 or past not in known:
        return
    nearest, other = sorted(known, key=lambda factor: abs(ways[factor] - 1.0))[:2]
    place = known.index(past)
    for one, two in ((nearest, other), (past, known[place - 1] if place > 0 else known[1])):
        power = math.log(ways[one] / ways[two]) / math.log(one / two)
        if power > _LOWEST_POWER:
            yield one * math.exp(-math.log(ways[one]) / power)


def share_of_the_path(probes: Sequence[Probe], *, before: float, target: float) -> float:
    """Share of a trial's steps at which its forget level crossed the target, on the straight line between probes.

    A trained difference that grew evenly in one direction would be on target at that factor.

    Args:
        probes: At least one, of which the last is past the target.
        before: Level of the untouched model, below the target.
        target: Level that forgetting aims at.

    Returns:
        A number between 0 and 1.

    Raises:
        ValueError: If no probe is past the target.
    """
    step, level = 0, before
    for probe in probes:
        now = probe.metrics["forget_nll"]
        if now > target:
            crossed = step + (probe.step - step) * (target - level) / (now - level)
            return crossed / probes[-1].step
        step, level = probe.step, now
    raise ValueError(f"a probe must be past the target, got levels up to {level}, target={target}")


def may_land(probes: Sequence[Probe], selection: SelectionConfig, *, target_nll: float) -> bool:
    """Whether a trial ends with the last of its probes, past a target that it reached before it broke the guard.

    It ends by its own rules, or because the retain guard stops it, which is decided here as whoever runs the trial
    will decide it. One that broke the guard first would land beyond a limit, or on it. Probes that were left out
    change nothing: they kept the guard, short of the target.
    """
    last, guard = probes[-1], selection.retain_guard
    series = [*guarded_series(probes).values()]
    verdict = guard_verdict(series, guard) if guard is not None else None
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
