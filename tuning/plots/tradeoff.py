"""Forgetting against damage: the objective of each finished trial over its largest constraint excess."""

import math
from dataclasses import dataclass

from core.config import metric_facts
from tuning.plots.reading import kind_of, n_by_kind, number_or_nan
from tuning.plots.style import TOP, Kind
from tuning.ranking import excess, pareto_front
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class TradeoffPoint:
    """A finished trial at the probe that counts: objective and largest excess over a limit."""

    number: int
    kind: Kind
    objective: float
    excess: float
    is_on_front: bool


@dataclass(frozen=True, kw_only=True)
class TradeoffData:
    """Objective against the largest constraint excess."""

    metric: str
    points: tuple[TradeoffPoint, ...]
    front: tuple[TradeoffPoint, ...]
    best_number: int | None
    n_hidden: int
    furthest: float

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Drawn trials of each kind that occurs."""
        return n_by_kind(p.kind for p in self.points)

    def drawn(self, point: TradeoffPoint) -> float:
        """Where a point is drawn: wild ones stand at the right edge."""
        return min(point.excess, self.furthest)

    @property
    def notes(self) -> list[str]:
        """Legend lines for what the axes do not hold."""
        n_cut = sum(p.excess > self.furthest for p in self.points)
        found = [f"cut at the right edge ({n_cut})"] if n_cut else []
        return found + (
            [f"no finite objective, not shown ({self.n_hidden})"] if self.n_hidden else []
        )

    @property
    def span(self) -> tuple[float, float]:
        """Ends of the drawn axis; the limit is always inside."""
        places = [0.0, *(self.drawn(p) for p in self.points)]
        low, high = min(places), max(places)
        margin = max(0.08 * (high - low), 0.01)
        return low - margin, high + margin

    @property
    def top(self) -> float:
        """Upper end of the drawn axis."""
        if metric_facts(self.metric).better != "down":
            return TOP
        return max(0.0, *(p.objective for p in self.points), 0.0) + 0.18

    @property
    def bottom(self) -> float:
        """Lower end of the drawn axis."""
        return min(0.0, *(p.objective for p in self.points), 0.0) - 0.08


def tradeoff_data(run: Run) -> TradeoffData:
    """Objective and largest excess of each finished trial that has both as finite numbers."""
    metric = run.spec.objective.metric
    front = {t.number for t in pareto_front(run.trials)}
    finished = [t for t in run.trials if kind_of(t) != "running"]
    points = []
    for trial in finished:
        objective = number_or_nan(trial.metrics.get(metric))
        if not math.isfinite(objective) or not math.isfinite(excess(trial)):
            continue
        points.append(
            TradeoffPoint(
                number=trial.number,
                kind=kind_of(trial),
                objective=objective,
                excess=excess(trial),
                is_on_front=trial.number in front,
            )
        )
    first = run.best
    return TradeoffData(
        metric=metric,
        points=tuple(points),
        front=tuple(sorted((p for p in points if p.is_on_front), key=lambda p: p.excess)),
        best_number=None if first is None else first.number,
        n_hidden=len(finished) - len(points),
        furthest=2 * max((c.tolerance for c in run.spec.constraints), default=0.0) or 0.5,
    )
