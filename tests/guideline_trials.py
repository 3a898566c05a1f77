"""Trials made by hand, as a guideline's statistics see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tuning.config import Choice
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
    at: Mapping[str, Choice] | None = None,
) -> Observed:
    """A trial with a reading at each step; its forget cross-entropy is ``4 * score``. ``at`` are its knobs."""
    damages = damages or [0.0] * len(scores)
    return Observed(
        unit=unit,
        params={RATE: 1e-3, **(at or {})},
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
    at: Mapping[str, Choice] | None = None,
) -> list[Observed]:
    """A trial at each rate and unit whose scores and damages are a function of the rate."""
    return [
        trial(*course(rate), unit=unit, at={RATE: rate, **(at or {})})
        for rate in RATES
        for unit in units
    ]
