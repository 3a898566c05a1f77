"""Draws the rank of each trial over two searched fields."""

from typing import Any, Final

import plotly.graph_objects as go
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from tuning.plots.drawing.canvas import (
    finished,
    mark,
    new_figure,
    plotly_finished,
    plotly_marks,
    plotly_ring,
    ring,
)
from tuning.plots.pair import PairData
from tuning.plots.style import KINDS, LIMIT_COLOR

# Viridis reversed without its palest part: the best are dark, and all can be seen on either ground.
_COLORS: Final = ((0.0, "#440154"), (0.35, "#31688e"), (0.7, "#35b779"), (1.0, "#b5de2b"))


def pair_matplotlib(data: PairData) -> Figure:
    """Draw ranks over two fields."""
    colors = LinearSegmentedColormap.from_list("rank", list(_COLORS))
    figure, axes = new_figure(width=8.0, height=4.8)
    shown, last = None, _last(data)
    for kind, count in data.n_by_kind.items():
        mine = [p for p in data.points if p.kind == kind]
        shown = axes.scatter(
            [p.x for p in mine],
            [p.y for p in mine],
            c=[float(p.rank) for p in mine],
            cmap=colors,
            vmin=1.0,
            vmax=last,
            marker=KINDS[kind].marker,
            s=70,
            zorder=3,
            label=f"{KINDS[kind].label} ({count})",
        )
    for point in data.points:
        if point.number == data.best_number:
            axes.scatter([point.x], [point.y], **ring(f"best: trial {point.number}"))
        axes.annotate(
            f"{point.number}", (point.x, point.y), (7, 4), textcoords="offset points", fontsize=8
        )
    if shown is not None:
        figure.colorbar(shown, ax=axes, label="rank (1 is the best)")
    mark(axes, data.x, along="x")
    mark(axes, data.y, along="y")
    return finished(figure, axes, is_empty=not data.points)


def pair_plotly(data: PairData) -> Any:
    """Draw ranks over two fields, interactive."""
    figure = go.Figure()
    for kind, count in data.n_by_kind.items():
        mine = [p for p in data.points if p.kind == kind]
        figure.add_scatter(
            x=[p.x for p in mine],
            y=[p.y for p in mine],
            customdata=[p.label for p in mine],
            mode="markers",
            marker={
                "color": [p.rank for p in mine],
                "coloraxis": "coloraxis",
                "symbol": KINDS[kind].symbol,
                "size": 13,
                "line": {"color": "#8a8f98", "width": 1},
            },
            name=f"{KINDS[kind].label} ({count})",
            legendgroup=kind,
            showlegend=False,
            hovertemplate="%{customdata}<extra></extra>",
        )
        figure.add_scatter(  # its line in the legend: there a scale of colours has none
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": LIMIT_COLOR, "symbol": KINDS[kind].symbol, "size": 11},
            name=f"{KINDS[kind].label} ({count})",
            legendgroup=kind,
        )
    for point in data.points:
        if point.number == data.best_number:
            plotly_ring(figure, point.x, point.y, f"best: trial {point.number}")
    figure.update_xaxes(**plotly_marks(data.x))
    figure.update_yaxes(**plotly_marks(data.y))
    figure.update_layout(
        coloraxis={
            "colorscale": [list(pair) for pair in _COLORS],
            "cmin": 1,
            "cmax": _last(data),
            "colorbar": {
                "title": {"text": "rank (1 is the best)", "font": {"size": 12}},
                "orientation": "h",
                "y": -0.22,
                "yanchor": "top",
                "thickness": 10,
            },
        }
    )
    return plotly_finished(figure, height=470, is_empty=not data.points)


def _last(data: PairData) -> float:
    return float(max((p.rank for p in data.points), default=2))
