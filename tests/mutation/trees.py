"""Mutations of what a YAML file says: its values as a tree, changed at one place of it."""

from __future__ import annotations

import copy
import datetime
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Place = tuple[Any, Any]
"""A mapping or list, and the key or index in it."""
Mutation = Callable[[Any, random.Random], None]
"""Changes a tree in place, by a generator of random numbers."""

ODD_NUMBERS = (
    0, -1, 1, 2, -(2**31), 2**31, 2**63, 2**64, 10**30, 10**400, -1e-3, 1e-300, 1e300, 5e-324, 0.1 + 0.2,
    float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "0", "-1", "1e-4", "1e400", "nan", "inf", "null", "~", "yes", "1_000", "0x10", "1:30", "12 GiB",
    "1e-4 per step", "10%", "auto", "none", "true", "../../../../etc/passwd", "/dev/zero", "/", ".", "hub:",
    "hub:a/b/c", "embedded:", "embedded:nothing", "package:", "file:///etc/passwd", "http://127.0.0.1:1/x",
    "C:\\models", "~root",
    "a\nb", "a\tb", "a\x00b", "\x1b[31mred\x1b[0m", "\x7f", "é的🦙", "\u202egnitirw", "\ufeff", "\ud83d", "{0}",
    "%s%n", "{{7*7}}", "[bold]", "`id`", "$(id)", "__class__", "__import__('os')", "optimizer.learning_rate.x", "a.b",
    ".", "..", "*", "a" * 300, "a" * 100_000, "a." * 2_000,
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, [], {}, [None], {"": None}, [[]], {"a": {"b": {"c": 1}}}, [1, "two", None], {1: 2}, {None: None},
    {True: "x"}, {1.5: "x"}, datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 12), b"\x00\xff", {"x"},
)  # fmt: skip


def places(tree: Any) -> Iterator[Place]:
    """Every place of a tree, outer ones first."""
    if isinstance(tree, Mapping):
        keys: list[Any] = list(tree)
    elif isinstance(tree, list):
        keys = list(range(len(tree)))
    else:
        return
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def _any_place(tree: Any, rng: random.Random) -> Place | None:
    found = list(places(tree))
    return rng.choice(found) if found else None


def _deleted(tree: Any, rng: random.Random) -> None:
    place = _any_place(tree, rng)
    if place is not None:
        del place[0][place[1]]


def _replaced(choose: Callable[[Any, random.Random], Any]) -> Mutation:
    def mutation(tree: Any, rng: random.Random) -> None:
        place = _any_place(tree, rng)
        if place is not None:
            owner, key = place
            owner[key] = choose(owner[key], rng)

    return mutation


def _other_type(value: Any, rng: random.Random) -> Any:
    forms: list[Callable[[Any], Any]] = [
        lambda v: [v],
        lambda v: {"value": v},
        str,
        repr,
        lambda v: v is not None,
        lambda v: dict(enumerate(v)) if isinstance(v, list) else [v, v],
        lambda v: list(v.items()) if isinstance(v, dict) else None,
        lambda v: list(v) if isinstance(v, dict | str) else {str(v): v},
        lambda v: -v if isinstance(v, int | float) else v,
        lambda v: v * 1_000_000 if isinstance(v, int | float) else [v] * 50,
        lambda v: float(v) if isinstance(v, int) else 0.5,
    ]
    return rng.choice(forms)(value)


def _deeper(value: Any, rng: random.Random) -> Any:
    for level in range(rng.choice((1, 2, 50, 300))):
        value = [value] if level % 2 else {"x": value}
    return value


def _longer(value: Any, rng: random.Random) -> Any:
    n = rng.choice((2, 50, 2_000))
    if isinstance(value, list) and value:
        return [copy.deepcopy(v) for v in value] * n
    if isinstance(value, dict) and value:
        return value | {
            f"{key}{i}": copy.deepcopy(v) for key, v in value.items() for i in range(n // 2)
        }
    return str(value) * n


def _renamed(tree: Any, rng: random.Random) -> None:
    """A key gets another name: a letter off, in other case, another's, or an odd one."""
    found = [(owner, key) for owner, key in places(tree) if isinstance(owner, dict)]
    if not found:
        return
    owner, key = rng.choice(found)
    text = str(key)
    at = rng.randrange(len(text) + 1)
    other = rng.choice(
        [text[:at] + text[at + 1 :], text[:at] + "x" + text[at:], text.upper(), text + ".", text.replace(".", "_"),
         str(rng.choice(found)[1]), rng.choice(ODD_TEXTS), 1, None, True, f"sweep.{text}"]
    )  # fmt: skip
    items = [(other if k == key else k, v) for k, v in owner.items()]
    owner.clear()
    owner.update(items)


def _swapped(tree: Any, rng: random.Random) -> None:
    """Two places exchange what they hold."""
    one, other = _any_place(tree, rng), _any_place(tree, rng)
    if one is None or other is None:
        return
    first, second = copy.deepcopy(one[0][one[1]]), copy.deepcopy(other[0][other[1]])
    one[0][one[1]] = second
    try:
        other[0][other[1]] = first
    except (IndexError, KeyError):  # it lay in the first
        return


def _copied(tree: Any, rng: random.Random) -> None:
    """What stands in one place stands in another mapping or list, too."""
    source = _any_place(tree, rng)
    owners = [tree, *(o[k] for o, k in places(tree) if isinstance(o[k], dict | list))]
    if source is None:
        return
    value, owner = copy.deepcopy(source[0][source[1]]), rng.choice(owners)
    if isinstance(owner, dict):
        owner[source[1] if isinstance(source[1], str) else "copied"] = value
    elif isinstance(owner, list):
        owner.insert(rng.randrange(len(owner) + 1), value)


def _new_key(tree: Any, rng: random.Random) -> None:
    owners = [tree, *(o[k] for o, k in places(tree) if isinstance(o[k], dict))]
    owner = rng.choice([o for o in owners if isinstance(o, dict)] or [{}])
    owner[rng.choice(ODD_TEXTS)] = rng.choice((*ODD_VALUES, *ODD_NUMBERS, *ODD_TEXTS))


def _nudged(value: Any, rng: random.Random) -> Any:
    """A number beside the one that stands there, so that rules across fields are met."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return rng.choice(ODD_NUMBERS)
    near = (
        value + 1,
        value - 1,
        value * 2,
        value / 2,
        -value,
        value * 1000,
        value / 1000,
        int(value),
        float(value),
    )
    return rng.choice(near)


TREE_MUTATIONS: Mapping[str, Mutation] = {
    "deleted": _deleted,
    "null": _replaced(lambda value, rng: None),
    "renamed": _renamed,
    "retyped": _replaced(_other_type),
    "number": _replaced(lambda value, rng: rng.choice(ODD_NUMBERS)),
    "nudged": _replaced(_nudged),
    "text": _replaced(lambda value, rng: rng.choice(ODD_TEXTS)),
    "odd value": _replaced(lambda value, rng: copy.deepcopy(rng.choice(ODD_VALUES))),
    "swapped": _swapped,
    "copied": _copied,
    "new key": _new_key,
    "deeper": _replaced(_deeper),
    "longer": _replaced(_longer),
}
"""By name."""
