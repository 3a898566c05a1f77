"""Parallel coordinates: a line for each finished trial through its fields, its worst drop and its value."""

from dataclasses import dataclass

from tuning.plots.history import history_data
from tuning.plots.reading import n_by_kind
from tuning.plots.scales import Scale, scales
from tuning.plots.style import Kind
from tuning.plots.tradeoff import tradeoff_data
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class ParallelLine:
    """A finished trial: a place on each axis, ``None`` where it has no value there."""

    number: int
    kind: Kind
    is_best: bool
    places: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class ParallelData:
    """Axes side by side, each from 0 to 1, and the trials across them."""

    axes: tuple[Scale, ...]
    lines: tuple[ParallelLine, ...]

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Trials of each kind that occurs."""
        return n_by_kind(line.kind for line in self.lines)


def parallel_data(run: Run) -> ParallelData:
    """Each finished trial across all searched fields, then largest excess over a limit, then value.

    Excess and value are cut as in the figures of the trade-off and of the history.
    """
    fields = scales(run.spec.space)
    values, tradeoff = history_data(run), tradeoff_data(run)
    ends = sorted((values.bottom, values.top))
    heights = Scale(name="value", path="", low=ends[0], high=ends[1])
    left, right = tradeoff.span
    drops = Scale(name="worst excess", path="", low=left, high=right)
    excess = {p.number: tradeoff.drawn(p) for p in tradeoff.points}
    lines = []
    for point in values.points:
        params = run.trials[point.number].params
        lines.append(
            ParallelLine(
                number=point.number,
                kind=point.kind,
                is_best=point.number == values.best_number,
                places=(
                    *(field.spread(params.get(field.path), point.number) for field in fields),
                    drops.place(excess.get(point.number)),
                    heights.place(values.drawn(point)),
                ),
            )
        )
    return ParallelData(axes=(*fields, drops, heights), lines=tuple(lines))
