"""The points of a finite space: every configuration that a sweep could try, and which proposals are one."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Final

from tuning.config import Choice, Dimension, SweepSpec
from tuning.space import Proposal, is_active, ordered_dimensions

MOST_POINTS = 10_000
"""Larger spaces are not counted: no sweep comes to their end."""

Mark = frozenset[tuple[str, Choice]]
"""What is equal for two proposals of the same point."""

SEED: Final = "seed"
"""The searched field that makes of one configuration several trials."""

Params = tuple[tuple[str, Choice], ...]
"""Values by field, in the order of their names."""


def without_seed(params: Proposal) -> Params:
    """What trials of one configuration have in common under every seed."""
    return tuple((name, value) for name, value in sorted(params.items()) if name != SEED)


def mark(spec: SweepSpec, proposal: Proposal) -> Mark:
    """What a proposal has in common with every other proposal of its point.

    A value on a grid of floats counts by its place, because 3 * 0.1 is not 0.3.
    """
    return frozenset((name, _place(spec.space[name], value)) for name, value in proposal.items())


def points(spec: SweepSpec) -> Iterator[dict[str, Choice]]:
    """Every point of the space, once; none if a dimension has infinitely many values."""
    dimensions = ordered_dimensions(spec)
    if not all(map(is_finite, dimensions.values())):
        return iter(())
    return _points(list(dimensions.items()), {})


def count_points(spec: SweepSpec, *, apart_from: frozenset[Mark] = frozenset()) -> int | None:
    """Points that are not among ``apart_from``; ``None`` if the space has more than :data:`MOST_POINTS`."""
    if not all(map(is_finite, spec.space.values())):
        return None
    few = list(itertools.islice(points(spec), MOST_POINTS + 1))
    if len(few) > MOST_POINTS:
        return None
    return sum(mark(spec, point) not in apart_from for point in few)


def is_finite(dimension: Dimension) -> bool:
    """Whether a dimension has a list of values: choices, integers, or floats with a step."""
    return dimension.float_range is None or dimension.float_range.step is not None


def values_of(dimension: Dimension) -> Iterator[Choice]:
    """The values of a finite dimension, from the first choice or the low end."""
    if dimension.categorical is not None:
        return iter(dimension.categorical)
    range_ = dimension.float_range or dimension.int_range
    assert range_ is not None and range_.step is not None  # only asked of finite dimensions
    low, high, step = range_.low, range_.high, range_.step
    count = int((high - low) / step + 1e-9) + 1
    return (min(high, low + i * step) for i in range(count))  # 0.1 + 2 * 0.1 > 0.3


def _points(
    dimensions: list[tuple[str, Dimension]], chosen: Mapping[str, Choice]
) -> Iterator[dict[str, Choice]]:
    if not dimensions:
        yield dict(chosen)
        return
    (name, dimension), *rest = dimensions
    if not is_active(dimension, chosen):
        yield from _points(rest, chosen)
        return
    for value in values_of(dimension):
        yield from _points(rest, {**chosen, name: value})


def _place(dimension: Dimension, value: Choice) -> Choice:
    range_ = dimension.float_range
    if range_ is None or range_.step is None:
        return value
    assert not isinstance(value, str)
    place = (value - range_.low) / range_.step
    return round(place) if math.isfinite(place) else value
