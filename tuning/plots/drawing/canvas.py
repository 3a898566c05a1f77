"""What the drawings share: empty canvases, grids, rings and legends of matplotlib and of plotly."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from plotly.offline import get_plotlyjs

from tuning.plots.scales import Scale
from tuning.plots.style import BEST_COLOR, KINDS, Kind, Style

NO_TRIAL: Final = "no finished trial"
FIELD_ENDS: Final = (-0.05, 1.05)
"""Ends of the axis of a searched field: room for a marker at 0 and at 1."""


def columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Pairs as two lists."""
    return [x for x, _ in pairs], [y for _, y in pairs]


def new_figure(*, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches; its parts make room for each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def tidy(axes: Axes) -> None:
    """Grid behind the data, and no frame above and at the right."""
    axes.grid(visible=True, color="#8a8f98", alpha=0.25, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def say_empty(axes: Axes, words: str = NO_TRIAL) -> None:
    """Say in place of data that there is none."""
    axes.text(
        0.5,
        0.5,
        words,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color="#5d6470",
    )
    axes.set_xticks([])
    axes.set_yticks([])


def finished(
    figure: Figure,
    axes: Axes,
    *,
    is_empty: bool,
    handles: list[Patch] | None = None,
    empty: str = NO_TRIAL,
) -> Figure:
    """Close a figure of one panel: grid, and the legend below; ``empty`` stands in place of data."""
    tidy(axes)
    if is_empty:
        say_empty(axes, empty)
        return figure
    found = handles or axes.get_legend_handles_labels()[0]
    figure.legend(handles=found, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def scatter_kinds(
    axes: Axes,
    n_by_kind: Mapping[Kind, int],
    places: Mapping[Kind, Sequence[tuple[float, float]]],
) -> None:
    """The points of each kind in its look, with how many there are in the legend.

    Args:
        axes: Where.
        n_by_kind: How many trials are of each kind.
        places: Where those that are drawn lie.
    """
    for kind, count in n_by_kind.items():
        style = KINDS[kind]
        axes.scatter(
            *columns(places[kind]),
            color=style.color,
            marker=style.marker,
            s=46,
            zorder=3,
            label=f"{style.label} ({count})",
        )


def ring(label: str) -> dict[str, Any]:
    """Look of the ring around the best trial."""
    return {
        "s": 150,
        "facecolors": "none",
        "edgecolors": BEST_COLOR,
        "linewidths": 2.0,
        "zorder": 6,
        "label": label,
    }


def plotly_marker(style: Style, *, size: int = 10) -> dict[str, Any]:
    """Look of the points of a kind or ending."""
    return {"color": style.color, "symbol": style.symbol, "size": size}


def plotly_ring(figure: Any, x: float, y: float | None, label: str, **where: Any) -> None:
    """Put the ring around the best trial, with its line in the legend."""
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={"color": BEST_COLOR, "symbol": "circle-open", "size": 18, "line": {"width": 3}},
        name=label,
        hoverinfo="skip",
        **where,
    )


def whole_ticks(numbers: Sequence[int], *, at_most: int = 20) -> dict[str, Any]:
    """A tick at every whole number while there are few; plotly would put some between them."""
    few = bool(numbers) and max(numbers) - min(numbers) <= at_most
    return {"dtick": 1} if few else {}


def mark(axes: Axes, scale: Scale, *, along: Literal["x", "y"]) -> None:
    """Let an axis be that of a searched field."""
    places, labels = [p for p, _ in scale.marks], [text for _, text in scale.marks]
    if along == "x":
        axes.set_xticks(places, labels)
        axes.set_xlim(*FIELD_ENDS)
        axes.set_xlabel(scale.name)
    else:
        axes.set_yticks(places, labels)
        axes.set_ylim(*FIELD_ENDS)
        axes.set_ylabel(scale.name)


def plotly_marks(scale: Scale) -> dict[str, Any]:
    """The axis of a searched field."""
    return {
        "tickvals": [place for place, _ in scale.marks],
        "ticktext": [label for _, label in scale.marks],
        "range": list(FIELD_ENDS),
        "title": scale.name,
    }


def plotly_finished(figure: Any, *, height: int, is_empty: bool, empty: str = NO_TRIAL) -> Any:
    """Common layout; ground and text colour are the page's."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 75, "r": 45, "t": 20, "b": 60},
        modebar={"orientation": "v"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="closest",
    )
    title = {"font": {"size": 13}, "standoff": 10}
    figure.update_xaxes(zeroline=False, automargin=True, title=title)
    figure.update_yaxes(zeroline=False, automargin=True, title=title)
    if is_empty:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(text=empty, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def plotly_js() -> str:
    """The plotly library, to stand once inside a ``<script>`` element."""
    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script")
