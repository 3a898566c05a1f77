"""Draws the optimisation history."""

from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from core.config import metric_facts
from tuning.plots.drawing.canvas import (
    columns,
    finished,
    new_figure,
    plotly_finished,
    plotly_marker,
    plotly_ring,
    ring,
    scatter_kinds,
    whole_ticks,
)
from tuning.plots.history import HistoryData
from tuning.plots.style import BEST_COLOR, KINDS, LIMIT_COLOR


def history_matplotlib(data: HistoryData) -> Figure:
    """Draw the optimisation history."""
    figure, axes = new_figure(width=8.0, height=4.2)
    line = [(p.number, p.best_so_far) for p in data.points if p.best_so_far is not None]
    if line:
        line.append((data.points[-1].number, line[-1][1]))
        axes.step(*columns(line), where="post", color=BEST_COLOR, lw=1.8, label="best so far")
    places = {
        kind: [(p.number, data.drawn(p)) for p in data.points if p.kind == kind]
        for kind in data.n_by_kind
    }
    scatter_kinds(axes, data.n_by_kind, places)
    for point in data.points:
        if point.number == data.best_number:
            axes.scatter([point.number], [data.drawn(point)], **ring(f"best: trial {point.number}"))
    low, high = sorted((data.bottom - data.margin, data.top))
    axes.set_ylim(low, high)
    axes.set_xlabel("trial number")
    axes.set_ylabel(f"value: {data.metric} ({metric_facts(data.metric).direction})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if data.has_band:
        axes.axhspan(*data.band, color=LIMIT_COLOR, alpha=0.12, lw=0)
        axes.text(
            0.01,
            data.band[1] - 0.03,
            data.band_label,
            va="top",
            fontsize=8,
            color="#5d6470",
            transform=axes.get_yaxis_transform(),
        )
    return finished(figure, axes, is_empty=not data.points)


def history_plotly(data: HistoryData) -> Any:
    """Draw the optimisation history, interactive."""
    figure = go.Figure()
    line = [(p.number, p.best_so_far) for p in data.points if p.best_so_far is not None]
    if line:
        line.append((data.points[-1].number, line[-1][1]))
        xs, ys = columns(line)
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"shape": "hv", "color": BEST_COLOR, "width": 2.5},
            name="best so far",
            hovertemplate="best so far %{y:.3f}<extra></extra>",
        )
    for kind, count in data.n_by_kind.items():
        mine = [p for p in data.points if p.kind == kind]
        figure.add_scatter(
            x=[p.number for p in mine],
            y=[data.drawn(p) for p in mine],
            customdata=["no finite value" if p.value is None else f"{p.value:.3f}" for p in mine],
            mode="markers",
            marker=plotly_marker(KINDS[kind]),
            name=f"{KINDS[kind].label} ({count})",
            hovertemplate="trial %{x}: %{customdata}<extra></extra>",
        )
    for point in data.points:
        if point.number == data.best_number:
            plotly_ring(figure, point.number, data.drawn(point), f"best: trial {point.number}")
    if data.has_band:
        figure.add_hrect(
            y0=data.band[0],
            y1=data.band[1],
            fillcolor=LIMIT_COLOR,
            opacity=0.12,
            line_width=0,
            annotation_text=data.band_label,
            annotation_position="top left",
        )
    figure.update_xaxes(title="trial number", **whole_ticks([p.number for p in data.points]))
    figure.update_yaxes(
        title=f"value: {data.metric} ({metric_facts(data.metric).direction})",
        range=sorted((data.bottom - data.margin, data.top)),
    )
    return plotly_finished(figure, height=400, is_empty=not data.points)
