"""From a number for each unit (a seed, a published study) to an interval, a p-value and a verdict.

Units are few, and that decides what can be said. The interval of a mean is the bootstrap's over the units, with the
percentiles moved outwards as Student's t asks for the number of units (the expanded percentile interval of
Hesterberg, The American Statistician 2015); with three to five units it is about the range of the values. P-values
are Student's. Where all units agree to the last digit, the scatter that is taken is that of the resolution of the
measurement, and not 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

Verdict = Literal["supported", "contradicted", "inconclusive"]

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.80
_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Region:
    """What a claim says about a mean: that it lies between two ends.

    Attributes:
        low: Lower end; minus infinity if only the upper one is claimed.
        high: Upper end.
        resolution: How finely one unit's number is measured, in its unit; above 0.
    """

    low: float = -math.inf
    high: float = math.inf
    resolution: float

    @property
    def ends(self) -> list[float]:
        """Its finite ends."""
        return [end for end in (self.low, self.high) if math.isfinite(end)]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over units.

    Attributes:
        value: The mean; NaN without a unit.
        low: Lower end of the 95 % interval; minus infinity with fewer than two units.
        high: Its upper end.
        n: Units.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """An estimate against what is claimed of it.

    Attributes:
        estimate: The mean and its interval.
        p_for: That chance alone puts the mean so far inside the claimed region, if it lies outside.
        p_against: The same with inside and outside exchanged.
        detectable: Distance from the nearest end at which the mean would have been told from it, with a probability
            of 80 %; infinite with fewer than two units.
        is_inside: Whether the whole interval lies in the region.
        is_outside: Whether none of it does.
    """

    estimate: Estimate
    p_for: float
    p_against: float
    detectable: float
    is_inside: bool
    is_outside: bool


def estimate(values: Sequence[float], *, resolution: float = 0.0) -> Estimate:
    """Mean of the finite values with its expanded bootstrap interval.

    Args:
        values: One for each unit; those that are not finite are left out.
        resolution: Least width that is believed of one unit's number.
    """
    found = np.array([v for v in values if math.isfinite(v)])
    n = len(found)
    if n == 0:
        return Estimate(value=math.nan, low=-math.inf, high=math.inf, n=0)
    mean = float(found.mean())
    if n == 1:
        return Estimate(value=mean, low=-math.inf, high=math.inf, n=1)
    rng = np.random.default_rng(0)
    means = found[rng.integers(0, n, size=(_DRAWS, n))].mean(axis=1)
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1.0 - LEVEL) / 2)))
    low, high = np.quantile(means, [tail, 1.0 - tail])
    least = float(stdtrit(n - 1, (1.0 + LEVEL) / 2)) * _least_scatter(resolution) / math.sqrt(n)
    return Estimate(
        value=mean, low=min(float(low), mean - least), high=max(float(high), mean + least), n=n
    )


def held_against(values: Sequence[float], region: Region) -> Compared:
    """Hold the numbers of the units against a claimed region."""
    found = [v for v in values if math.isfinite(v)]
    mean = estimate(found, resolution=region.resolution)
    if mean.n < 2:
        return Compared(
            estimate=mean,
            p_for=1.0,
            p_against=1.0,
            detectable=math.inf,
            is_inside=False,
            is_outside=False,
        )
    scatter = max(float(np.std(found, ddof=1)), _least_scatter(region.resolution))
    error, freedom = scatter / math.sqrt(mean.n), mean.n - 1
    inwards = [mean.value - region.low] if math.isfinite(region.low) else []
    inwards += [region.high - mean.value] if math.isfinite(region.high) else []
    tails = [float(stdtr(freedom, distance / error)) for distance in inwards]
    quantiles = stdtrit(freedom, 1.0 - ALPHA / 2) + stdtrit(freedom, POWER)
    return Compared(
        estimate=mean,
        p_for=max(1.0 - tail for tail in tails),
        p_against=min(1.0, len(tails) * min(tails)),
        detectable=float(quantiles) * error,
        is_inside=region.low < mean.low and mean.high < region.high,
        is_outside=mean.high < region.low or mean.low > region.high,
    )


def joint_p(tested: Sequence[Compared]) -> float:
    """Two-sided p-value of a claim that is a conjunction: all regions hold, or one of them does not.

    For the claim the largest p-value counts (an intersection-union test), against it the smallest, times their
    number (Bonferroni).
    """
    supporting = max(t.p_for for t in tested)
    contradicting = min(1.0, len(tested) * min(t.p_against for t in tested))
    return min(1.0, 2.0 * min(supporting, contradicting))


def verdict(tested: Sequence[Compared], *, adjusted_p: float) -> Verdict:
    """Supported if every interval lies in its region, contradicted if one lies outside, else inconclusive.

    Either only if the p-value, adjusted over the set of guidelines, is at most 0.05.
    """
    if adjusted_p > ALPHA:
        return "inconclusive"
    if all(t.is_inside for t in tested):
        return "supported"
    return "contradicted" if any(t.is_outside for t in tested) else "inconclusive"


def _least_scatter(resolution: float) -> float:
    """Standard deviation of a number that is known to lie somewhere in an interval of this width."""
    return resolution / math.sqrt(12.0)
