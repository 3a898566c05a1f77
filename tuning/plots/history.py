"""The optimisation history of a run: the value of each finished trial, and the best so far."""

import math
from dataclasses import dataclass
from typing import Final

from tuning.plots.reading import kind_of, n_by_kind
from tuning.plots.style import Kind
from tuning.ranking import best
from tuning.run import Run

LOWEST_SHOWN: Final = -2.0
"""Penalised values below this are drawn here, so that one wild trial does not flatten the others."""


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """A finished trial: its value, ``None`` if it has no finite one, and the best feasible value so far."""

    number: int
    kind: Kind
    value: float | None
    best_so_far: float | None


@dataclass(frozen=True, kw_only=True)
class HistoryData:
    """Value of each finished trial, by number."""

    metric: str
    points: tuple[HistoryPoint, ...]
    best_number: int | None

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Trials of each kind that occurs."""
        return n_by_kind(p.kind for p in self.points)

    @property
    def bottom(self) -> float:
        """Lower end of the drawn axis."""
        lowest = min((p.value for p in self.points if p.value is not None), default=0.0)
        return max(LOWEST_SHOWN, min(lowest, 0.0)) - 0.1

    @property
    def band_label(self) -> str:
        """What stands in the band below -1."""
        is_cut = any(p.value is not None and p.value < self.bottom for p in self.points)
        return f"penalised: no feasible probe{f' (cut at {LOWEST_SHOWN:g})' if is_cut else ''}"

    def drawn(self, point: HistoryPoint) -> float:
        """Height at which a point is drawn: trials without a value stand on the bottom."""
        return self.bottom if point.value is None else max(point.value, self.bottom)


def history_data(run: Run) -> HistoryData:
    """Value of each finished trial and the best feasible value up to it."""
    points, so_far = [], None
    for trial in run.trials:
        kind = kind_of(trial)
        if kind == "running":
            continue
        value = trial.value
        if value is not None and not math.isfinite(value):
            value = None
        if kind == "feasible" and value is not None:
            so_far = value if so_far is None else max(so_far, value)
        points.append(HistoryPoint(number=trial.number, kind=kind, value=value, best_so_far=so_far))
    first = best(run.trials)
    return HistoryData(
        metric=run.spec.objective.metric,
        points=tuple(points),
        best_number=None if first is None else first.number,
    )
