"""Two searched fields against each other: the rank of each finished trial where both are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.plots.reading import kind_of, n_by_kind
from tuning.plots.scales import Scale, scales
from tuning.plots.style import Kind
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class PairPoint:
    """A finished trial.

    Attributes:
        number: Its number.
        kind: What it came to.
        x: Place of its value of the first field.
        y: Place of its value of the second.
        rank: 1 of the best one.
        label: Number and rank in words.
    """

    number: int
    kind: Kind
    x: float
    y: float
    rank: int
    label: str


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Ranks over two fields; trials that broke have no rank, and those without one of the fields no place."""

    x: Scale
    y: Scale
    points: tuple[PairPoint, ...]
    best_number: int | None

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Trials of each kind that occurs."""
        return n_by_kind(p.kind for p in self.points)


def pair_data(run: Run, order: Sequence[str]) -> PairData | None:
    """Ranks over two searched fields.

    Args:
        run: The run.
        order: Dotted paths of the fields, the most important first; those that are not named follow in the
            file's order.

    Returns:
        ``None`` if fewer than two fields are searched.
    """
    found = sorted(
        scales(run.spec.space),
        key=lambda s: order.index(s.path) if s.path in order else len(order),
    )
    if len(found) < 2:
        return None
    x, y = found[:2]
    in_order = run.ranked
    points = []
    for rank, trial in enumerate(in_order, start=1):
        places = [
            s.spread(trial.params.get(s.path), trial.number + i) for i, s in enumerate((x, y))
        ]
        if places[0] is None or places[1] is None:
            continue
        points.append(
            PairPoint(
                number=trial.number,
                kind=kind_of(trial),
                x=places[0],
                y=places[1],
                rank=rank,
                label=f"trial {trial.number}: rank {rank} of {len(in_order)}",
            )
        )
    first = run.best
    return PairData(
        x=x,
        y=y,
        points=tuple(points),
        best_number=None if first is None else first.number,
    )
