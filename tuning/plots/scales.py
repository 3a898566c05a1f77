"""Searched fields as axes: where a value lies between 0 and 1, and the marks beside it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tuning.config import Dimension

MOST_MARKS: Final = 6
"""Marks of a numeric axis."""

_LONGEST: Final = 20
_SPREAD: Final = 0.4
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The range of a searched field as an axis from 0 to 1.

    Attributes:
        name: The field's shortest name that no other searched field has.
        path: Its dotted path.
        low: Lower end of a range.
        high: Upper end.
        is_log: Whether ratios count.
        choices: Choices side by side, in the file's order, instead of a range.
    """

    name: str
    path: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    choices: tuple[Any, ...] = ()

    def place(self, value: Any) -> float | None:
        """Where a value lies; ``None`` where the trial has none, or one that the range does not hold."""
        if self.choices:
            return self._slot(self.choices.index(value)) if value in self.choices else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        if not self.low <= value <= self.high:
            return None
        low, high, here = (self._scaled(x) for x in (self.low, self.high, float(value)))
        return (here - low) / (high - low) if high > low else 0.5

    def spread(self, value: Any, number: int) -> float | None:
        """:meth:`place`, but trials with the same choice stand beside each other, the same way each time."""
        place = self.place(value)
        if place is None or not self.choices:
            return place
        return place + _SPREAD / len(self.choices) * ((number * _GOLDEN) % 1.0 - 0.5)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Places and their labels: each choice, powers of ten, or round numbers."""
        if self.choices:
            return [(self._slot(i), plain(str(c))) for i, c in enumerate(self.choices)]
        found = [(self.place(v), f"{v:g}") for v in self._round_values()]
        return [(place, label) for place, label in found if place is not None]

    def _round_values(self) -> list[float]:
        if self.high <= self.low:
            return [self.low]
        if not self.is_log:
            step = _round_step((self.high - self.low) / (MOST_MARKS - 1))
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
        first, last = (
            math.ceil(math.log10(self.low) - 1e-9),
            math.floor(math.log10(self.high) + 1e-9),
        )
        every = max(1, math.ceil((last - first + 1) / MOST_MARKS))
        powers = [10.0**k for k in range(first, last + 1, every)]
        return powers if len(powers) > 1 else [self.low, math.sqrt(self.low * self.high), self.high]

    def _slot(self, index: int) -> float:
        return (index + 0.5) / len(self.choices)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def scales(space: Mapping[str, Dimension]) -> list[Scale]:
    """An axis for each searched field, in the file's order."""
    leaves = [path.rpartition(".")[2] for path in space]
    return [
        _scale(dimension, path=path, name=leaf if leaves.count(leaf) == 1 else path)
        for (path, dimension), leaf in zip(space.items(), leaves, strict=True)
    ]


def plain(text: str) -> str:
    """A text of a run without the signs that plotly and matplotlib read as markup, and not long."""
    shown = re.sub(r"[^\w .,+\-/=:]", "·", " ".join(text.split()))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _round_step(least: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= least * (1 - 1e-9))


def _scale(dimension: Dimension, *, path: str, name: str) -> Scale:
    range_ = dimension.float_range or dimension.int_range
    if range_ is None:
        return Scale(name=name, path=path, choices=dimension.categorical or ())
    return Scale(
        name=name, path=path, low=float(range_.low), high=float(range_.high), is_log=range_.log
    )
