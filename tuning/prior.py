"""Trials drawn where good ones are expected, fewer and fewer, and none where the expectation is wrong.

A prior must not cost much where it is wrong. So it never changes what a sampler thinks: it takes the place of some
proposals. The share falls as that of piBO's prior does, with the number of trials, and with how often the trials drawn
from it were worth more than the others, as in PriorBand.

References:
    Hvarfner et al., "piBO: Augmenting Acquisition Functions with User Beliefs", ICLR 2022;
    Mallik et al., "PriorBand: Practical Hyperparameter Optimization in the Age of Deep Learning", NeurIPS 2023.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from core.seeding import derive_seed
from tuning.config import Choice, Dimension, PriorSpec, SweepSpec
from tuning.places import is_ordered, place, value_at
from tuning.space import is_active, ordered_dimensions

Confidence = Literal["low", "medium", "high"]

FIRST_SHARE: Final[Mapping[Confidence, float]] = {"low": 0.3, "medium": 0.5, "high": 0.7}
"""Share of the first proposals that are drawn from the prior."""

WIDTH: Final[Mapping[Confidence, float]] = {"low": 0.3, "medium": 0.2, "high": 0.1}
"""Standard deviation of a draw around its point, as a part of the range."""

HALVED_AFTER: Final = 10
"""Trials after which the share is half of the first."""

KEPT_CHOICE: Final = 0.75
"""How often a draw has its point's choice; else any."""

_FEWEST: Final = 2


def share(
    confidence: Confidence, *, n_trials: int, drawn: Sequence[float], others: Sequence[float]
) -> float:
    r"""Share of proposals that are drawn from the prior.

    .. math:: s_0 \cdot \frac{10}{10 + n} \cdot \min(1, 2 w)

    with w the part of pairs of a drawn and another trial of which the drawn one is worth more (ties count half), once
    there are two of each; before that the last factor is 1.

    Args:
        confidence: Gives the first share, :math:`s_0`.
        n_trials: n, trials so far.
        drawn: What finished trials that were drawn from the prior are worth, more is better.
        others: The same of the other finished trials.
    """
    now = FIRST_SHARE[confidence] * HALVED_AFTER / (HALVED_AFTER + n_trials)
    if len(drawn) < _FEWEST or len(others) < _FEWEST:
        return now
    won = sum((d > o) + 0.5 * (d == o) for d in drawn for o in others)
    return now * min(1.0, 2.0 * won / (len(drawn) * len(others)))


def drawn_here(
    spec: SweepSpec, *, number: int, drawn: Sequence[float], others: Sequence[float]
) -> dict[str, Choice]:
    """The proposal of the prior for a trial, empty where the sampler proposes; the same for the same trials.

    Args:
        spec: The sweep.
        number: Number of the trial.
        drawn: See :func:`share`.
        others: See :func:`share`.
    """
    prior = spec.sampler.prior
    if prior is None:
        return {}
    chance = random.Random(derive_seed(spec.sampler.seed, "prior", number))  # noqa: S311
    if chance.random() >= share(prior.confidence, n_trials=number, drawn=drawn, others=others):
        return {}
    return _draw(spec, prior, chance)


def _draw(spec: SweepSpec, prior: PriorSpec, chance: random.Random) -> dict[str, Choice]:
    point = chance.choice(prior.points).values
    found: dict[str, Choice] = {}
    for name, dimension in ordered_dimensions(spec).items():
        if is_active(dimension, found) and name in point:
            found[name] = _near(point[name], dimension, WIDTH[prior.confidence], chance)
    return found


def _near(value: Choice, dimension: Dimension, width: float, chance: random.Random) -> Choice:
    """A value of the range: normally distributed around a given one on the scale of the search."""
    if dimension.categorical is not None and not is_ordered(dimension):
        kept = chance.random() < KEPT_CHOICE
        return value if kept else chance.choice(dimension.categorical)
    at = place(value, dimension)
    there = chance.gauss(at, width)
    while not 0.0 <= there <= 1.0:
        there = chance.gauss(at, width)
    number = value_at(there, dimension)
    if dimension.categorical is not None:
        return min(dimension.categorical, key=lambda c: abs(place(c, dimension) - there))
    range_ = dimension.float_range or dimension.int_range
    assert range_ is not None  # Dimension checks it
    if range_.step is not None:
        number = range_.low + round((number - range_.low) / range_.step) * range_.step
    number = min(max(number, range_.low), range_.high)
    return number if dimension.float_range is not None else round(number)
