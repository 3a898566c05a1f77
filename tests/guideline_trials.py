"""Trials made by hand, as a guideline's statistics see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuning.guidelines.evidence import Observed, Reading
from tuning.guidelines.trajectories import RATE

RATES = (1e-4, 1e-3, 1e-2)


def trial(
    scores: Sequence[float],
    damages: Sequence[float] | None = None,
    *,
    unit: str = "seed 0",
    limit: float = 0.1,
    target_nll: float = 3.0,
    **params: float,
) -> Observed:
    """A trial with a reading at each step; a forget cross-entropy of ``4 * score`` beside them."""
    damages = damages or [0.0] * len(scores)
    return Observed(
        unit=unit,
        params={RATE: 1e-3} | {name.replace("__", "."): value for name, value in params.items()},
        readings=tuple(
            Reading(step=i, score=s, damage=d, metrics={"forget_nll": 4.0 * s, "retain_drop": d})
            for i, (s, d) in enumerate(zip(scores, damages, strict=True), start=1)
        ),
        limit=limit,
        step_tokens=1000.0,
        target_nll=target_nll,
    )


def over_rates(
    course: Callable[[float], tuple[Sequence[float], Sequence[float]]],
    *,
    units: Sequence[str] = ("seed 0", "seed 1"),
    **params: float,
) -> list[Observed]:
    """A trial at each rate and unit whose scores and damages are a function of the rate."""
    name = RATE.replace(".", "__")
    return [
        trial(*course(rate), unit=unit, **{name: rate}, **params)
        for rate in RATES
        for unit in units
    ]
