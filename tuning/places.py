"""Where a value lies in its range: 0 at the lower and 1 at the upper end, on the scale on which it is searched."""

import math
from collections.abc import Callable

from tuning.config import Choice, Dimension


def is_ordered(dimension: Dimension) -> bool:
    """Whether more and less have a meaning: a range, or choices that are all numbers."""
    return dimension.categorical is None or (
        len(dimension.categorical) > 1
        and all(
            isinstance(c, int | float) and not isinstance(c, bool) for c in dimension.categorical
        )
    )


def is_logarithmic(dimension: Dimension) -> bool:
    """Whether ratios count: a logarithmic range, or positive choices of which the largest is 4 times the least."""
    low, high = ends(dimension)
    if dimension.categorical is not None:
        return low > 0.0 and high / low >= 4.0
    range_ = dimension.float_range or dimension.int_range
    return range_ is not None and range_.log


def ends(dimension: Dimension) -> tuple[float, float]:
    """Lowest and highest value of an ordered field."""
    if dimension.categorical is not None:
        numbers = [float(c) for c in dimension.categorical]
        return min(numbers), max(numbers)
    range_ = dimension.float_range or dimension.int_range
    assert range_ is not None  # Dimension checks it
    return float(range_.low), float(range_.high)


def place(value: Choice, dimension: Dimension) -> float:
    """Where a value of an ordered field lies between its ends, 0 to 1; a half where they are one."""
    scale: Callable[[float], float] = math.log if is_logarithmic(dimension) else float
    low, high, here = (scale(float(x)) for x in (*ends(dimension), value))
    return (here - low) / (high - low) if high > low else 0.5


def value_at(share: float, dimension: Dimension) -> float:
    """The value at a place, the inverse of :func:`place`; beyond 0 and 1 the scale goes on."""
    low, high = ends(dimension)
    if is_logarithmic(dimension):
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)
