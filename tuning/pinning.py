"""A searched field that ``--set`` gives a value: the sweep searches the others beside it."""

from collections.abc import Mapping, Set
from typing import Any

from core.errors import ConfigError


def pin(values: dict[str, Any], name: str, value: Any, *, where: str) -> None:
    """Take a searched field out of the space of a file's plain values, for it gets a fixed value.

    Ranges that wait for it (``when``) are searched without a condition if it has the value that they wait for, and
    not at all if it has another. A starting point with another value is tried with the fixed one, and its
    ``source`` says so.

    Args:
        values: The file; its ``space`` and ``start_from`` are changed.
        name: Dotted path of the field. One that is not searched changes nothing.
        value: What it is fixed at.
        where: The file, for messages.

    Raises:
        ConfigError: If the sweep searches nothing else.
    """
    space = values.get("space")
    if not isinstance(space, dict) or name not in space:
        return
    before = set(space)
    del space[name]
    for other, waits_for in _conditions_on(name, space).items():
        options = waits_for if isinstance(waits_for, list) else [waits_for]
        if value in options:
            del space[other]["when"][name]
        else:
            _leave_out(space, other)
    if not space:
        raise ConfigError(
            where,
            [
                f"--set {name}: leaves nothing to search; leave one field of the space open, or run one configuration "
                "with `unlearn-tune train`"
            ],
        )
    points = values.get("start_from")
    if isinstance(points, list):
        gone = before - set(space)
        values["start_from"] = [p for p in points if not _is_used_up(p, gone, {name: value})]


def _conditions_on(name: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """Ranges whose ``when`` names a field, with the values that they wait for."""
    found = {}
    for other, range_ in space.items():
        when = range_.get("when") if isinstance(range_, dict) else None
        if isinstance(when, dict) and name in when:
            found[other] = when[name]
    return found


def _leave_out(space: dict[str, Any], name: str) -> None:
    """Search neither a field nor what waits for it."""
    for other in _conditions_on(name, space):
        _leave_out(space, other)
    space.pop(name, None)


def _is_used_up(point: Any, gone: Set[str], fixed: Mapping[str, Any]) -> bool:
    """Take out of a starting point what is not searched any more; whether it then says nothing."""
    start = point.get("values") if isinstance(point, dict) else None
    if not isinstance(start, dict) or not gone & start.keys():
        return False
    for name, value in fixed.items():
        if start.get(name, value) != value:
            point["source"] = f"{point.get('source')}, with {name} {value} instead of {start[name]}"
    for name in gone & start.keys():
        del start[name]
    return not start
