"""What each attribute of a trial in a ledger must be: a damaged ledger is refused, not half believed.

A ledger is another's file: copied by halves, restored from a disk that lost a block, edited by hand. What it says of
a trial is looked at once, where it is read, so that nothing behind has to doubt it.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeGuard, get_args

from core.measuring.selection import StoppedBy

Check = Callable[[Any], bool]
"""Whether a value, as JSON gives it, is what an attribute holds."""

_MOST = 2**53
"""Whole numbers beyond this are no floats; nothing here comes near it."""
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


def is_number(value: Any) -> TypeGuard[float | str]:
    """A number, or ``nan``, ``inf`` or ``-inf`` as JSON holds them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _MOST
    return isinstance(value, float) or value in ("nan", "inf", "-inf")


def is_count(value: Any) -> TypeGuard[int]:
    """A whole number from 0 on that a computer counts to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def are_numbers(value: Any) -> bool:
    """Numbers by name."""
    return isinstance(value, Mapping) and all(map(is_number, value.values()))


def is_interval(value: Any) -> bool:
    """Two numbers."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


def are_intervals(value: Any) -> bool:
    """Pairs of numbers by name."""
    return isinstance(value, Mapping) and all(map(is_interval, value.values()))


def are_choices(value: Any) -> bool:
    """Values of searched fields by name."""
    return isinstance(value, Mapping) and all(
        isinstance(choice, bool | int | float | str) for choice in value.values()
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_below(value: Any) -> bool:
    """A folder that lies below the run folder."""
    if not isinstance(value, str) or "\0" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


def _is_decision(value: Any) -> bool:
    """What was decided about a probe, see :class:`tuning.pruning.Decision`."""
    if not isinstance(value, Mapping) or not are_numbers(value.get("rungs")):
        return False
    verdict = value.get("verdict", "absent")
    if verdict is None:
        return True
    return (
        isinstance(verdict, Mapping)
        and verdict.keys() == {"stopped_by", "metric", "value", "limit", "reason"}
        and verdict["stopped_by"] in get_args(StoppedBy)
        and all(map(is_number, (verdict["value"], verdict["limit"])))
        and all(map(_is_text, (verdict["metric"], verdict["reason"])))
    )


_ATTRIBUTES: Mapping[str, tuple[str, Check]] = {
    "params": ("values by name", are_choices),
    "attempt": ("a whole number", is_count),
    "proposed_by": ("a word", _is_text),
    "stopped_by": ("a word", _is_text),
    "reason": ("text", _is_text),
    "value": ("a number", is_number),
    "feasible": ("true or false", _is_truth),
    "step": ("a whole number", is_count),
    "steps": ("a whole number", is_count),
    "metrics": ("numbers by name", are_numbers),
    "violations": ("numbers by name", are_numbers),
    "duration_s": ("a number", is_number),
    "adapter": ("a folder below the run folder", _is_below),
    "intervals": ("pairs of numbers by name", are_intervals),
    "value_interval": ("two numbers", is_interval),
    "is_minimized": ("true or false", _is_truth),
}
"""By name: what it is in words, and the check of it. ``null`` stands for what is not known."""
_OF_DRIVER: tuple[tuple[re.Pattern[str], str, Check], ...] = (
    (re.compile(r"guard:\d+:\d+"), "numbers by name", are_numbers),
    (re.compile(r"verdict:\d+:\d+"), "a decision", _is_decision),
)
"""The driver's own: several for each probe, by attempt and step."""


def refuse_damaged(number: int, state: str, attributes: Mapping[str, Any]) -> None:
    """Refuse what no driver wrote of a trial.

    Args:
        number: Of the trial.
        state: That the ledger gives it.
        attributes: Its attributes, as JSON gives them.

    Raises:
        ValueError: With trial, attribute, rule and value.
    """
    if state not in STATES:
        raise ValueError(
            f"trial {number}: its state must be one of {', '.join(STATES)}, got {state!r}"
        )
    for name, value in attributes.items():
        words, check = _ATTRIBUTES.get(name, ("", None))
        if check is not None and value is not None and not check(value):
            raise ValueError(f"trial {number}: {name}: must be {words}, got {value!r}")
    if state in ("RUNNING", "WAITING"):
        return
    metrics, excess = (attributes.get(name) or {} for name in ("metrics", "violations"))
    lacking = [name for name in excess if name not in metrics]
    if lacking:
        raise ValueError(
            f"trial {number}: metrics: {lacking[0]} is limited and must be there, got none"
        )
    value = attributes.get("value")
    if state == "COMPLETE" and (value is None or not math.isfinite(float(value))):
        raise ValueError(
            f"trial {number}: value: of a complete trial must be a number, got {value!r}"
        )


def refuse_damaged_decisions(number: int, attributes: Mapping[str, Any]) -> None:
    """Refuse what no driver recorded of a trial's probes.

    Raises:
        ValueError: With trial, attribute and rule.
    """
    for name, value in attributes.items():
        for pattern, words, check in _OF_DRIVER:
            head = pattern.pattern.partition(":")[0]
            if name.startswith(f"{head}:") and not (pattern.fullmatch(name) and check(value)):
                raise ValueError(f"trial {number}: {name}: must be {words}, got {value!r}")
