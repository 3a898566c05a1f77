"""Draws the value over each searched field, a small panel for each, with the window of the good trials shaded."""

import math
from typing import Any, Final

import plotly.graph_objects as go
from matplotlib.figure import Figure

from tuning.plots.drawing.canvas import (
    mark,
    plotly_finished,
    plotly_marker,
    plotly_marks,
    plotly_ring,
    ring,
    say_empty,
    scatter_kinds,
    tidy,
)
from tuning.plots.slices import Slice, SlicesData
from tuning.plots.style import BEST_COLOR, KINDS

PANELS_IN_A_ROW: Final = 3
_TINT: Final = 0.14


def slices_matplotlib(data: SlicesData) -> Figure:
    """Draw all slices, up to three in a row."""
    n = len(data.slices)
    columns, rows = min(n, PANELS_IN_A_ROW), math.ceil(n / PANELS_IN_A_ROW)
    figure = Figure(figsize=(1.0 + 3.7 * columns, 0.6 + 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, one in zip(panels, data.slices, strict=False):
        if one.window is not None:
            axes.axvspan(*one.window, color=BEST_COLOR, alpha=_TINT, lw=0)
        places = {
            kind: [(p.place, p.height) for p in one.points if p.kind == kind]
            for kind in one.n_by_kind
        }
        scatter_kinds(axes, one.n_by_kind, places)
        for point in one.points:
            if point.number == data.values.best_number:
                axes.scatter([point.place], [point.height], **ring(f"best: trial {point.number}"))
        tidy(axes)
        mark(axes, one.scale, along="x")
        axes.set_title(one.words, fontsize=8.5, color="#5d6470")
        axes.set_ylim(*_heights(data))
        if not one.points:
            say_empty(axes)
    for axes in list(panels):
        axes.set_visible(False)
    figure.supylabel(f"value: {data.values.metric}", fontsize=9)
    labels: dict[str, Any] = {}
    for axes in figure.axes:
        labels |= {
            text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    if labels:
        figure.legend(
            list(labels.values()),
            list(labels),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
    return figure


def slices_plotly(data: SlicesData) -> list[Any]:
    """Draw each slice, interactive: a figure of its own, so that a page lays them out."""
    return [_panel(data, one) for one in data.slices]


def _panel(data: SlicesData, one: Slice) -> Any:
    figure = go.Figure()
    if one.window is not None:
        low, high = one.window
        figure.add_vrect(x0=low, x1=high, fillcolor=BEST_COLOR, opacity=_TINT, line_width=0)
    for kind in one.n_by_kind:
        mine = [p for p in one.points if p.kind == kind]
        figure.add_scatter(
            x=[p.place for p in mine],
            y=[p.height for p in mine],
            customdata=[p.label for p in mine],
            mode="markers",
            marker=plotly_marker(KINDS[kind], size=9),
            name=KINDS[kind].label,
            hovertemplate="%{customdata}<extra></extra>",
        )
    for point in one.points:
        if point.number == data.values.best_number:
            plotly_ring(figure, point.place, point.height, f"best: trial {point.number}")
    figure.update_xaxes(**plotly_marks(one.scale))
    figure.update_yaxes(range=list(_heights(data)), title=data.values.metric)
    figure = plotly_finished(figure, height=290, is_empty=not one.points)
    figure.update_layout(
        showlegend=False,
        title={"text": one.words, "font": {"size": 12}, "x": 0.5, "y": 0.97},
        margin={"l": 60, "r": 15, "t": 36, "b": 50},
    )
    return figure


def _heights(data: SlicesData) -> tuple[float, float]:
    low, high = sorted((data.values.bottom - data.values.margin, data.values.top))
    return low, high
