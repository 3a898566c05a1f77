"""The optimisation history of a run: the value of each finished trial, and the best so far."""

import math
from dataclasses import dataclass
from typing import Final

from core.config import metric_facts
from core.measuring.selection import worst_value
from tuning.plots.reading import kind_of, n_by_kind
from tuning.plots.style import TOP, Kind
from tuning.run import Run

FURTHEST_SHOWN: Final = 1.0
"""Penalised values further beyond the worst feasible one are drawn here, so that one wild trial does not flatten the
others."""


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """A finished trial: its value, ``None`` if it has no finite one, and the best feasible value so far."""

    number: int
    kind: Kind
    value: float | None
    best_so_far: float | None


@dataclass(frozen=True, kw_only=True)
class HistoryData:
    """Value of each finished trial, by number.

    Attributes:
        metric: The objective.
        points: Trials.
        best_number: The best one, if there is one.
        worst: The worst that a feasible probe can be worth: what is penalised lies beyond it.
    """

    metric: str
    points: tuple[HistoryPoint, ...]
    best_number: int | None
    worst: float = -1.0

    @property
    def is_minimized(self) -> bool:
        """Whether less is better of the objective."""
        return metric_facts(self.metric).better == "down"

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Trials of each kind that occurs."""
        return n_by_kind(p.kind for p in self.points)

    @property
    def bottom(self) -> float:
        """End of the drawn axis where the worst values lie: the lower one, or the upper one if less is better."""
        sign, furthest = self._sign, self.worst - self._sign * FURTHEST_SHOWN
        lowest = min((sign * p.value for p in self.points if p.value is not None), default=0.0)
        return sign * (max(sign * furthest, min(lowest, 0.0)) - 0.1)

    @property
    def top(self) -> float:
        """End of the drawn axis where the best values lie: room for a marker there."""
        if not self.is_minimized:
            return TOP
        values = [p.value for p in self.points if p.value is not None]
        return min(0.0, *values, 0.0) - 0.18

    @property
    def margin(self) -> float:
        """Room for a marker at the end of the worst values; added upwards if less is better."""
        return 0.08 * self._sign

    @property
    def band(self) -> tuple[float, float]:
        """Lower and upper end of where penalised values are drawn."""
        low, high = sorted((self.bottom - self.margin, self.worst))
        return low, high

    @property
    def has_band(self) -> bool:
        """Whether values beyond the worst feasible one are drawn."""
        return self._sign * self.bottom < self._sign * self.worst

    @property
    def band_label(self) -> str:
        """What stands in the band beyond the worst feasible value."""
        is_cut = any(p.value is not None and self.drawn(p) != p.value for p in self.points)
        furthest = self.worst - self._sign * FURTHEST_SHOWN
        return f"penalised: no feasible probe{f' (cut at {furthest:g})' if is_cut else ''}"

    @property
    def _sign(self) -> float:
        return -1.0 if self.is_minimized else 1.0

    def drawn(self, point: HistoryPoint) -> float:
        """Height at which a point is drawn: trials without a value stand at the end of the worst."""
        if point.value is None:
            return self.bottom
        return self._sign * max(self._sign * point.value, self._sign * self.bottom)


def history_data(run: Run) -> HistoryData:
    """Value of each finished trial and the best feasible value up to it."""
    selection = run.spec.trial_selection()
    better = min if selection.is_minimized else max
    points, so_far = [], None
    for trial in run.trials:
        kind = kind_of(trial)
        if kind == "running":
            continue
        value = trial.value
        if value is not None and not math.isfinite(value):
            value = None
        if kind == "feasible" and value is not None:
            so_far = value if so_far is None else better(so_far, value)
        points.append(HistoryPoint(number=trial.number, kind=kind, value=value, best_so_far=so_far))
    first = run.best
    return HistoryData(
        metric=run.spec.objective.metric,
        points=tuple(points),
        best_number=None if first is None else first.number,
        worst=worst_value(selection),
    )
