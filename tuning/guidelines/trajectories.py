"""What is read off the readings of a trial, and off trials along a knob. All are functions of plain values."""

import math
from collections.abc import Sequence

from tuning.config import Choice
from tuning.guidelines.evidence import Observed, Reading

RATE = "optimizer.learning_rate"

_UNTOUCHED = Reading(step=0, score=0.0, damage=0.0)


def best_score(trial: Observed) -> float:
    """Largest score of a feasible reading; 0, that of the untouched model, if none is above it."""
    return max((r.score for r in trial.readings if trial.is_feasible(r)), default=0.0)


def best_feasible(trials: Sequence[Observed]) -> Observed | None:
    """The trial with the largest score above 0, or ``None``."""
    first = max(trials, key=best_score, default=None)
    return first if first is not None and best_score(first) > 0.0 else None


def values_of(trials: Sequence[Observed], knob: str) -> list[float]:
    """The distinct values of a numeric knob, ascending."""
    return sorted({_numeric(t.params[knob]) for t in trials})


def with_value(trials: Sequence[Observed], knob: str, value: float) -> list[Observed]:
    """Trials at one value of a numeric knob."""
    return [t for t in trials if _numeric(t.params[knob]) == value]


def profile(trials: Sequence[Observed], knob: str) -> tuple[list[float], list[float]]:
    """Values of a knob and, for each, the best score of a trial there."""
    values = values_of(trials, knob)
    scores = [max(max(0.0, best_score(t)) for t in with_value(trials, knob, v)) for v in values]
    return values, scores


def window_decades(rates: Sequence[float], scores: Sequence[float], *, level: float) -> float:
    """Decades of a rate on which the score is at least ``level``, with straight lines between the rates.

    Args:
        rates: Positive, ascending.
        scores: One for each rate.
        level: The score that is asked for.

    Returns:
        Between 0 and the decades that the rates span; what lies beyond them is not seen.
    """
    places = [math.log10(r) for r in rates]
    total = 0.0
    for i in range(len(places) - 1):
        low, high = sorted((scores[i], scores[i + 1]))
        width = places[i + 1] - places[i]
        if low >= level:
            total += width
        elif high > level:
            total += width * (high - level) / (high - low)
    return total


def best_place(rates: Sequence[float], scores: Sequence[float]) -> float:
    """Decimal logarithm of the best rate: the vertex of the parabola through the highest score and its neighbours.

    At an end of the rates it is the end. NaN if no score is above 0.
    """
    if not scores or max(scores) <= 0.0:
        return math.nan
    i = max(range(len(scores)), key=lambda k: scores[k])
    place = math.log10(rates[i])
    if i in (0, len(scores) - 1):
        return place
    left, right = math.log10(rates[i - 1]) - place, math.log10(rates[i + 1]) - place
    down_left, down_right = scores[i] - scores[i - 1], scores[i] - scores[i + 1]
    bottom = right * down_left - left * down_right
    if bottom <= 0.0:
        return place
    return place + 0.5 * (right**2 * down_left - left**2 * down_right) / bottom


def crossing(trial: Observed, level: float) -> Reading | None:
    """Where the score first reaches ``level``, on straight lines between readings; ``None`` if it never does.

    The step of what is returned is rounded up, so that :func:`step_at` is the finer one.
    """
    found = _crossing(trial, level)
    if found is None:
        return None
    before, after, share = found
    return Reading(
        step=math.ceil(before.step + share * (after.step - before.step)),
        score=level,
        damage=before.damage + share * (after.damage - before.damage),
        metrics=after.metrics,
    )


def damage_at(trials: Sequence[Observed], level: float, *, cap: float) -> float:
    """The least damage at which one of the trials has the score ``level``; ``cap`` if none reaches it."""
    found = [c.damage for t in trials if (c := crossing(t, level)) is not None]
    return min(cap, min(found, default=cap))


def step_at(trials: Sequence[Observed], level: float, *, cap: float) -> float:
    """The fewest steps in which one of the trials reaches ``level`` within its limit; ``cap`` if none does."""
    found = []
    for trial in trials:
        place = _crossing(trial, level)
        if place is None:
            continue
        before, after, share = place
        if before.damage + share * (after.damage - before.damage) <= trial.limit:
            found.append(before.step + share * (after.step - before.step))
    return min(cap, min(found, default=cap))


def _crossing(trial: Observed, level: float) -> tuple[Reading, Reading, float] | None:
    """The readings between which the level is first reached, and the share of the way between them."""
    before = _UNTOUCHED
    for after in trial.readings:
        if after.score >= level > before.score:
            return before, after, (level - before.score) / (after.score - before.score)
        before = after
    return None


def _numeric(value: Choice) -> float:
    assert not isinstance(value, str)
    return float(value)
