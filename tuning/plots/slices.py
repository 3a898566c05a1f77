"""Slices of a sweep: the value of each finished trial over each searched field, and the window in which it works."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuning.plots.history import HistoryData, history_data
from tuning.plots.reading import n_by_kind
from tuning.plots.scales import Scale, scales
from tuning.plots.style import Kind
from tuning.run import Run

if TYPE_CHECKING:
    from tuning.knobs import Window


@dataclass(frozen=True, kw_only=True)
class SlicePoint:
    """A finished trial: where its value of the field lies, and the height at which its own value is drawn."""

    number: int
    kind: Kind
    place: float
    height: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One searched field.

    Attributes:
        scale: Its axis.
        points: Trials that have it.
        window: Ends of the window of the good trials, as places; ``None`` where there is none.
        words: The window in words.
    """

    scale: Scale
    points: tuple[SlicePoint, ...]
    window: tuple[float, float] | None
    words: str

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Trials of each kind that occurs."""
        return n_by_kind(p.kind for p in self.points)


@dataclass(frozen=True, kw_only=True)
class SlicesData:
    """All searched fields of a run.

    Attributes:
        values: How values are drawn, as in the optimisation history.
        slices: Fields in the file's order.
    """

    values: HistoryData
    slices: tuple[Slice, ...]


def slices_data(run: Run, windows: Mapping[str, "Window | None"]) -> SlicesData:
    """Values of the finished trials over each searched field.

    Args:
        run: The run.
        windows: Window of the good trials by dotted path, of the fields that have one.
    """
    values = history_data(run)
    slices = []
    for scale in scales(run.spec.space):
        points = []
        for point in values.points:
            value = run.trials[point.number].params.get(scale.path)
            place = scale.spread(value, point.number)
            if place is None:
                continue
            shown = "no finite value" if point.value is None else f"{point.value:.3f}"
            points.append(
                SlicePoint(
                    number=point.number,
                    kind=point.kind,
                    place=place,
                    height=values.drawn(point),
                    label=f"trial {point.number}: {shown}",
                )
            )
        window = windows.get(scale.path)
        slices.append(
            Slice(
                scale=scale,
                points=tuple(points),
                window=None if window is None else _ends(scale, window),
                words="no window" if window is None else _words(window),
            )
        )
    return SlicesData(values=values, slices=tuple(slices))


def _ends(scale: Scale, window: "Window") -> tuple[float, float] | None:
    """Places of a window's ends, with room for a marker; choices are shaded whole."""
    places = [scale.place(end) for end in (window.low, window.high)]
    low, high = places
    if low is None or high is None:
        return None
    margin = 0.5 / len(scale.choices) if scale.choices else 0.012
    return max(-0.04, low - margin), min(1.04, high + margin)


def _words(window: "Window") -> str:
    width = "" if window.decades is None else f", {window.decades:.1f} decades"
    return f"good trials ({len(window.good)}): {window.low:.3g} to {window.high:.3g}{width}"
