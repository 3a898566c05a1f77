"""The rows of one probe, read little by little until what hangs on them is decided."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.config import ConstraintMetric
from core.metrics.intervals import Sums
from core.metrics.nested import (
    CORRECT,
    NLL,
    decides,
    drop_interval,
    estimated_level,
    next_size,
)
from core.metrics.probes import MEASURED, Levels, level

Bounds = Mapping[str, Mapping[int, Sequence[float]]]
"""Of each set and column of its row sums, the drops at which something is decided."""

Place = tuple[str, int]
"""A row: its set, and its place there."""


def bounds(limits: Iterable[tuple[ConstraintMetric, float]], baseline: Levels) -> Bounds:
    """Values of limited metrics as drops of a set: in nats per token, or of its accuracy.

    ``retain_forgetting`` is a drop in units of the retain set's advantage, and ``retain_utility`` a fall of
    accuracy in units of the accuracy before, both known before the first probe.
    """
    found: dict[str, dict[int, list[float]]] = {"retain": {}, "general": {}}
    advantage = baseline["unseen"].nll - baseline["retain"].nll
    for metric, limit in limits:
        name, column, bound = {
            "retain_drop": ("retain", NLL, limit),
            "general_drop": ("general", NLL, limit),
            "retain_forgetting": ("retain", NLL, limit * advantage),
            "retain_accuracy_drop": ("retain", CORRECT, limit),
            "general_accuracy_drop": ("general", CORRECT, limit),
            "retain_utility": ("retain", CORRECT, (1.0 - limit) * baseline["retain"].accuracy),
        }[metric]
        found[name].setdefault(column, []).append(bound)
    return found


@dataclass(kw_only=True)
class Reading:
    """Row sums of a model, as far as rows were read; none is read twice.

    Attributes:
        measure: Row sums ``(n, 3)`` of some rows under the model.
        orders: Places of each set's rows in the order in which they are read.
        before: Row sums of all rows under the target model.
        bounds: What is to be decided; a set that has none here is read whole.
        sums: Row sums ``(N, 3)`` of each set; NaN where a row was not read.
    """

    measure: Callable[[Sequence[Place]], Sums]
    orders: Mapping[str, Sequence[int]]
    before: Mapping[str, Sums]
    bounds: Bounds
    sums: dict[str, Sums] = field(init=False)
    _n_read: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is read yet."""
        self.sums = {name: np.full_like(self.before[name], np.nan) for name in MEASURED}
        self._n_read = dict.fromkeys(MEASURED, 0)

    @property
    def is_whole(self) -> bool:
        """Whether every row was read."""
        return all(n == len(self.orders[name]) for name, n in self._n_read.items())

    @property
    def now(self) -> dict[str, Sums]:
        """Row sums of the rows read, in the order of each set."""
        return {name: self.sums[name][self._places(name)] for name in MEASURED}

    @property
    def then(self) -> dict[str, Sums]:
        """The same rows under the target model."""
        return {name: self.before[name][self._places(name)] for name in MEASURED}

    def levels(self, baseline: Levels) -> Levels:
        """Levels of the whole sets as the rows read say: the baseline's, and the change of these rows."""
        if self.is_whole:
            return {name: level(sums) for name, sums in self.sums.items()}
        now, then = self.now, self.then
        return {name: estimated_level(now[name], then[name], baseline[name]) for name in MEASURED}

    def until_decided(self) -> None:
        """Read the sets that nothing bounds whole, and of the others as many rows as their bounds need."""
        sizes = {name: len(order) for name, order in self.orders.items()}
        wanted = {n: next_size(0, sizes[n]) if n in self.bounds else sizes[n] for n in MEASURED}
        while wanted:
            self._read(wanted)
            wanted = {
                name: next_size(self._n_read[name], sizes[name])
                for name in self.bounds
                if not self._is_decided(name)
            }

    def rest(self) -> None:
        """Read what is left."""
        self._read({name: len(order) for name, order in self.orders.items()})

    def _places(self, name: str) -> list[int]:
        return sorted(self.orders[name][: self._n_read[name]])

    def _is_decided(self, name: str) -> bool:
        n_rows = len(self.orders[name])
        if self._n_read[name] == n_rows:
            return True
        now, before = self.now[name], self.then[name]
        return all(
            decides(drop_interval(now, before, n_rows=n_rows, column=column), at)
            for column, at in self.bounds[name].items()
        )

    def _read(self, wanted: Mapping[str, int]) -> None:
        """Read each set up to a number of rows, all sets in one pass."""
        new = [
            (name, place)
            for name, n in wanted.items()
            for place in self.orders[name][self._n_read[name] : n]
        ]
        for (name, place), sums in zip(new, self.measure(new), strict=True):
            self.sums[name][place] = sums
        self._n_read |= wanted
