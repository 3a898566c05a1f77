"""What trials say of one searched field or two: where it works, where it breaks, whether its range is too narrow.

Pure rules over records. Places are those of :mod:`tuning.places`. Tests are permutation tests with a fixed seed: they
need no distribution, and give the same answer twice.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from tuning.config import Dimension, ObjectiveSpec
from tuning.places import is_logarithmic, is_ordered, place, value_at
from tuning.ranking import is_candidate
from tuning.records import TrialRecord

GOOD_SHARE: Final = 0.5
"""A trial is good if it is worth at least this share of the best value; of a value that is minimised, if it lies at
most this share of the way from the best to the worst of the candidates above the best."""

EDGE: Final = 0.1
"""Part of a range, at either end, that counts as its edge."""

SURE: Final = 0.05
"""Probability by chance alone below which something is said."""

FEWEST: Final = 8
"""Trials below which nothing is said of a field's effect."""

_PERMUTATIONS: Final = 2000
_FEWEST_OF_A_SIDE: Final = 2

Places = NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a numeric field works: from the lowest to the highest value of a good trial.

    Attributes:
        low: Lowest value.
        high: Highest value.
        decades: ``log10(high / low)``; ``None`` where the range is not logarithmic.
        good: Numbers of the good trials.
        others: Numbers of the other finished trials inside the window: the field is not all that counts.
    """

    low: float
    high: float
    decades: float | None
    good: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cliff:
    """A value of a numeric field beyond which trials break a limit.

    Attributes:
        at: The value: between the nearest trials on both sides.
        beyond: ``above`` or ``below``: on which side trials break a limit.
        broken_beyond: Numbers of the trials beyond it that never kept every limit.
        kept_beyond: The other ones beyond it.
        broken_before: The same on its near side.
        kept_before: The other ones.
        chance: Probability that shuffled outcomes are told apart as well by any value.
    """

    at: float
    beyond: str
    broken_beyond: tuple[int, ...]
    kept_beyond: tuple[int, ...]
    broken_before: tuple[int, ...]
    kept_before: tuple[int, ...]
    chance: float

    @property
    def trials(self) -> tuple[int, ...]:
        """All of them."""
        sides = (self.broken_beyond, self.kept_beyond, self.broken_before, self.kept_before)
        return tuple(sorted(n for side in sides for n in side))


@dataclass(frozen=True, kw_only=True)
class EdgeHit:
    """More good trials at an end of a range than chance puts there.

    Attributes:
        end: ``upper`` or ``lower``.
        at: Numbers of the good trials there.
        good: Numbers of all good trials.
        chance: Probability of as many at this end if the place did not matter.
    """

    end: str
    at: tuple[int, ...]
    good: tuple[int, ...]
    chance: float


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two numeric fields whose effects on the value are not simply added.

    Attributes:
        first: One field.
        second: The other.
        sign: 1 if a higher second favours a higher first, -1 if it favours a lower one.
        chance: Probability by chance alone.
        trials: Numbers of the trials that it rests on.
    """

    first: str
    second: str
    sign: int
    chance: float
    trials: tuple[int, ...]


def finished(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that came to an end that says something of their values: complete or pruned, not broken."""
    return [t for t in trials if t.state in ("COMPLETE", "PRUNED") and t.value is not None]


def good_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Candidates that are worth at least :data:`GOOD_SHARE` of the best; none if the best is worth nothing."""
    candidates = [t for t in trials if is_candidate(t) and math.isfinite(t.merit)]
    if not candidates:
        return []
    highest, lowest = (pick(t.merit for t in candidates) for pick in (max, min))
    if candidates[0].is_minimized:
        return [t for t in candidates if t.merit >= highest - GOOD_SHARE * (highest - lowest)]
    return [t for t in candidates if highest > 0.0 and t.merit >= GOOD_SHARE * highest]


def good_rule(objective: ObjectiveSpec) -> str:
    """What :func:`good_trials` asks of a trial beside the limits, in words that follow "kept every limit and"."""
    if objective.direction == "minimize":
        return "lay at most halfway from the best value to the worst that kept them"
    return "reached half of the best value"


def feasible_window(
    trials: Sequence[TrialRecord], name: str, dimension: Dimension
) -> Window | None:
    """Where an ordered field works.

    Returns:
        ``None`` if the field has no order, or fewer than two good trials have it.
    """
    if not is_ordered(dimension):
        return None
    good = _with(good_trials(trials), name)
    if len(good) < 2:
        return None
    values = [float(t.params[name]) for t in good]
    low, high = min(values), max(values)
    numbers = {t.number for t in good}
    inside = [
        t.number
        for t in _with(finished(trials), name)
        if low <= float(t.params[name]) <= high and t.number not in numbers
    ]
    return Window(
        low=low,
        high=high,
        decades=math.log10(high / low) if is_logarithmic(dimension) else None,
        good=tuple(sorted(numbers)),
        others=tuple(inside),
    )


def cliff(trials: Sequence[TrialRecord], name: str, dimension: Dimension) -> Cliff | None:
    r"""The value of an ordered field that best tells trials that kept every limit from those that never did.

    Of all values between two trials, the one with the largest difference of the shares that broke a limit on both
    sides, :math:`|b_> / n_> - b_< / n_<|`, at least two trials on either side. Its chance is that of a difference as
    large under shuffled outcomes.

    Returns:
        ``None`` if the field has no order, or there is no value with two trials on both sides.
    """
    if not is_ordered(dimension):
        return None
    of = sorted(_with(finished(trials), name), key=lambda t: float(t.params[name]))
    values = [float(t.params[name]) for t in of]
    cuts = [
        i
        for i, (a, b) in enumerate(pairwise(values), start=1)
        if a < b and _FEWEST_OF_A_SIDE <= i <= len(of) - _FEWEST_OF_A_SIDE
    ]
    broken = np.array([not t.feasible for t in of], dtype=float)
    if not cuts or broken.min(initial=1.0) == broken.max(initial=0.0):
        return None
    n = len(of)
    after = np.array([[i >= cut for i in range(n)] for cut in cuts], dtype=float)
    weights = after / after.sum(1, keepdims=True) - (1 - after) / (1 - after).sum(1, keepdims=True)
    found = weights @ broken
    best = int(np.abs(found).argmax())
    largest = np.abs(broken[_shuffles(n)] @ weights.T).max(1)
    chance = _chance(largest, abs(float(found[best])))
    cut = cuts[best]
    is_above = found[best] > 0
    far, near = (of[cut:], of[:cut]) if is_above else (of[:cut], of[cut:])
    middle = (place(values[cut - 1], dimension) + place(values[cut], dimension)) / 2.0
    return Cliff(
        at=value_at(middle, dimension),
        beyond="above" if is_above else "below",
        broken_beyond=tuple(t.number for t in far if not t.feasible),
        kept_beyond=tuple(t.number for t in far if t.feasible),
        broken_before=tuple(t.number for t in near if not t.feasible),
        kept_before=tuple(t.number for t in near if t.feasible),
        chance=chance,
    )


def edge_hits(trials: Sequence[TrialRecord], name: str, dimension: Dimension) -> list[EdgeHit]:
    """Ends of an ordered field's range at which good trials lie more often than trials do.

    The chance is the binomial one of as many good trials at the end, each there with the share of all finished trials
    that lie there, and not less than :data:`EDGE`. Ends with fewer than three good trials say nothing.
    """
    if not is_ordered(dimension):
        return []
    good, every = _with(good_trials(trials), name), _with(finished(trials), name)
    hits = []
    for end in ("lower", "upper"):
        there = [t.number for t in good if _is_at(end, t, name, dimension)]
        share = sum(_is_at(end, t, name, dimension) for t in every) / max(1, len(every))
        share = max(share if dimension.categorical else EDGE, EDGE)
        chance = float(bdtrc(len(there) - 1, len(good), share))
        if len(there) >= 3 and chance <= SURE:
            numbers = tuple(t.number for t in good)
            hits.append(EdgeHit(end=end, at=tuple(there), good=numbers, chance=chance))
    return hits


def interactions(
    trials: Sequence[TrialRecord], space: Mapping[str, Dimension], names: Sequence[str]
) -> list[Interaction]:
    r"""Pairs of ordered fields that act together.

    The value is fitted by :math:`a + b x + c x^2 + d y + e y^2` over places x and y, and by the same with
    :math:`f x y`; the chance is that of as large a gain when what the first fit leaves is shuffled (Freedman and
    Lane). Fits need three trials more than they have numbers.

    References:
        Freedman and Lane, "A Nonstochastic Interpretation of Reported Significance Levels", 1983.
    """
    ordered = [name for name in names if is_ordered(space[name])]
    pairs = [(a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :]]
    found = [_interaction(trials, space, *pair) for pair in pairs]
    return [i for i in found if i is not None]


def association(trials: Sequence[TrialRecord], name: str, dimension: Dimension) -> float | None:
    r"""Chance that a field alone explains as much of the trials' worth when values are shuffled among them.

    Explained is the share of variance of :math:`a + b x + c x^2` over places x, or of the means of each choice.

    Returns:
        ``None`` with fewer than eight trials that have the field, or where it or their worth is always the same.
    """
    of = _with(finished(trials), name)
    if len(of) < FEWEST or len({t.params[name] for t in of}) < 2:
        return None
    if is_ordered(dimension):
        x = np.array([place(t.params[name], dimension) for t in of])
        design = np.stack([np.ones_like(x), x, x**2], axis=1)
    else:
        choices = sorted({str(t.params[name]) for t in of})
        design = np.array([[str(t.params[name]) == c for c in choices] for t in of], dtype=float)
    value = np.array([worth(t) for t in of])
    value = value - value.mean()
    total = float(value @ value)
    if total < 1e-12:
        return None
    fit = design @ np.linalg.pinv(design)
    explained = ((value[_shuffles(len(of))] @ fit) ** 2).sum(1)
    return _chance(explained / total, float(((fit @ value) ** 2).sum()) / total)


def holm(p_values: Mapping[Name, float], *, total: int | None = None) -> dict[Name, float]:
    """P-values adjusted for their number by Holm's step-down procedure, the smallest first.

    Args:
        p_values: By name.
        total: Hypotheses of the whole set, of which those without a p-value count as 1; all are here if absent.
    """
    n = len(p_values) if total is None else total
    adjusted: dict[Name, float] = {}
    largest = 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (n - i) * p))
        adjusted[name] = largest
    return adjusted


def worth(trial: TrialRecord) -> float:
    """A finished trial's value, more is better, and the worst feasible one where it never kept every limit."""
    return max(trial.merit, -3.0 if trial.is_minimized else -1.0)


def _interaction(
    trials: Sequence[TrialRecord], space: Mapping[str, Dimension], first: str, second: str
) -> Interaction | None:
    of = [t for t in finished(trials) if first in t.params and second in t.params]
    if len(of) < 9:
        return None
    x = np.array([place(t.params[first], space[first]) - 0.5 for t in of])
    y = np.array([place(t.params[second], space[second]) - 0.5 for t in of])
    value = np.array([worth(t) for t in of])
    alone = np.stack([np.ones_like(x), x, x**2, y, y**2], axis=1)
    fitted = alone @ np.linalg.lstsq(alone, value, rcond=None)[0]
    rest = value - fitted
    product = x * y - alone @ np.linalg.lstsq(alone, x * y, rcond=None)[0]
    if float(product @ product) < 1e-12 or float(rest @ rest) < 1e-12:
        return None
    project = np.eye(len(of)) - alone @ np.linalg.pinv(alone)
    shuffled = rest[_shuffles(len(of))] @ project
    gains = _explained(shuffled, product)
    chance = _chance(gains, float(_explained(rest[None], product)[0]))
    return Interaction(
        first=first,
        second=second,
        sign=1 if float(product @ rest) > 0 else -1,
        chance=chance,
        trials=tuple(t.number for t in of),
    )


def _explained(rest: Places, by: Places) -> Places:
    """Share of each row's variance that a direction explains."""
    total = np.maximum((rest**2).sum(1), 1e-300)
    explained: Places = (rest @ by) ** 2 / float(by @ by) / total
    return explained


def _with(trials: Sequence[TrialRecord], name: str) -> list[TrialRecord]:
    return [t for t in trials if name in t.params]


def _is_at(end: str, trial: TrialRecord, name: str, dimension: Dimension) -> bool:
    here = place(trial.params[name], dimension)
    return here <= EDGE if end == "lower" else here >= 1.0 - EDGE


def _shuffles(n: int) -> NDArray[np.int64]:
    """Permutations of n places, the same each time."""
    generator = np.random.default_rng(0)
    order: NDArray[np.int64] = generator.permuted(np.tile(np.arange(n), (_PERMUTATIONS, 1)), axis=1)
    return order


def _chance(by_chance: Places, found: float) -> float:
    """Share of shuffles that are at least as large, the found one counted among them."""
    return (1 + int((by_chance >= found - 1e-12).sum())) / (1 + len(by_chance))
