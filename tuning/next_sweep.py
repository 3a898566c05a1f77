"""The sweep to make next: ranges narrowed to where trials were good, widened where good trials lie at an end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from core.errors import ConfigError
from tuning.config import Choice, Dimension
from tuning.files import parse_sweep
from tuning.knobs import EdgeHit, feasible_window, finished, good_rule, good_trials
from tuning.places import place, value_at
from tuning.pool import Pool
from tuning.ranking import best, tied_with_best
from tuning.records import TrialRecord

MARGIN: Final = 0.125
"""Part of a range that is kept on either side of the good trials."""

WIDER: Final = 0.5
"""Part of a range that is added beyond an end at which good trials lie."""

_FEWEST_GOOD: Final = 3
_FEWEST_OF_A_CHOICE: Final = 3
_STARTS: Final = 3
_DIGITS: Final = 3


def next_sweep(pool: Pool, hits: Mapping[str, Sequence[EdgeHit]]) -> dict[str, Any]:
    """Plain values of a sweep file that goes on from what a pool found.

    It begins with the best trial and those that tie with it. A range that would leave the field's own limits stays as
    it was there.

    Args:
        pool: The trials.
        hits: Ends at which good trials lie, by field.
    """
    last = pool.runs[-1]
    values = last.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    values |= {"schema": 1, "name": f"{last.name[:55]}-next"}
    values["space"] = dict(values["space"])
    for name, dimension in pool.space.items():
        changed = _dimension(pool, name, dimension, hits.get(name, ()))
        proposed = values | {"space": values["space"] | {name: changed}, "start_from": []}
        values["space"][name] = changed if _is_valid(proposed) else _kept(dimension)
    first = best(pool.trials)
    starts = [] if first is None else [first, *tied_with_best(pool.trials)][:_STARTS]
    values["start_from"] = [
        {"source": f"this run: {_cite(pool, [t])}", "values": dict(t.params)}
        for t in starts
        if _lies_within(t, values)
    ]
    return values


def _dimension(
    pool: Pool, name: str, dimension: Dimension, hits: Sequence[EdgeHit]
) -> dict[str, Any]:
    good = [t for t in good_trials(pool.trials) if name in t.params]
    if len(good) < _FEWEST_GOOD:
        return _kept(dimension)
    if dimension.categorical is not None:
        return _choices(pool, name, dimension, good)
    window = feasible_window(pool.trials, name, dimension)
    assert window is not None  # there are good trials
    low, high = place(window.low, dimension) - MARGIN, place(window.high, dimension) + MARGIN
    ends = {hit.end for hit in hits}
    low = -WIDER if "lower" in ends else max(0.0, low)
    high = 1.0 + WIDER if "upper" in ends else min(1.0, high)
    rule = good_rule(pool.runs[0].spec.objective)  # all runs of a pool have one objective
    why = f"{_cite(pool, good)} kept every limit and {rule} here"
    if ends:
        why += (
            f"; good trials lie at the {' and the '.join(sorted(ends))} end, so it is wider there"
        )
    found = dimension.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    key = "float" if dimension.float_range is not None else "int"
    numbers = {"low": value_at(low, dimension), "high": value_at(high, dimension)}
    if key == "int":
        step = found["int"].get("step", 1)
        base = found["int"]["low"]
        numbers = {
            "low": base + math.floor((numbers["low"] - base) / step) * step,
            "high": base + math.ceil((numbers["high"] - base) / step) * step,
        }
    elif found["float"].get("step") is not None:
        return _kept(dimension)  # a grid stays one
    else:
        numbers = {
            "low": _rounded(numbers["low"], down=True),
            "high": _rounded(numbers["high"], down=False),
        }
    found[key] = found[key] | numbers
    return found | {"why": why, "source": _source(pool)}


def _choices(
    pool: Pool, name: str, dimension: Dimension, good: Sequence[TrialRecord]
) -> dict[str, Any]:
    """Without the choices that were tried three times or more and never were good."""
    tried = [t for t in finished(pool.trials) if name in t.params]
    choices: tuple[Choice, ...] = dimension.categorical or ()
    hopeless = [
        c
        for c in choices
        if sum(t.params[name] == c for t in tried) >= _FEWEST_OF_A_CHOICE
        and not any(t.params[name] == c for t in good)
    ]
    if not hopeless:
        return _kept(dimension)
    found = dimension.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    without = [t for t in tried if t.params[name] in hopeless]
    found["categorical"] = [c for c in choices if c not in hopeless]
    why = f"without {', '.join(map(str, hopeless))}, which {_cite(pool, without)} tried in vain"
    return found | {"why": why, "source": _source(pool)}


def _kept(dimension: Dimension) -> dict[str, Any]:
    """The range as it was, in its own words."""
    found: dict[str, Any] = dimension.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return found


def _is_valid(values: Mapping[str, Any]) -> bool:
    try:
        parse_sweep(values, where="next sweep")
    except ConfigError:
        return False
    return True


def _lies_within(trial: TrialRecord, values: Mapping[str, Any]) -> bool:
    start = {"source": "x", "values": dict(trial.params)}
    return _is_valid(dict(values) | {"start_from": [start]})


def _source(pool: Pool) -> str:
    names = ", ".join(run.name for run in pool.runs)
    return f"this run: {names}" if len(pool.runs) == 1 else f"these runs: {names}"


def _cite(pool: Pool, trials: Sequence[TrialRecord]) -> str:
    labels = ", ".join(pool.label(t.number) for t in trials)
    return f"trial{'s' * (len(trials) != 1)} {labels}"


def _rounded(value: float, *, down: bool) -> float:
    """To three digits, outwards: no good trial falls out of the range."""
    if value == 0.0:
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - _DIGITS)
    steps = math.floor(value / unit) if down else math.ceil(value / unit)
    return float(f"{steps * unit:.{_DIGITS}g}")
