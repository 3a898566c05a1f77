"""Draws forgetting against damage."""

from typing import Any, Final

import plotly.graph_objects as go
from matplotlib.figure import Figure

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
)
from tuning.plots.style import BEST_COLOR, KINDS, LIMIT_COLOR
from tuning.plots.tradeoff import TradeoffData

LABELLED_FRONT: Final = 10
"""A longer Pareto front is drawn without the trials' numbers."""


def tradeoff_matplotlib(data: TradeoffData) -> Figure:
    """Draw the trade-off."""
    figure, axes = new_figure(width=8.0, height=4.8)
    low, high = data.span
    axes.axvspan(0.0, high, color=LIMIT_COLOR, alpha=0.10, lw=0)
    axes.axvline(0.0, color=LIMIT_COLOR, lw=1.4, ls="--", label="limit")
    if data.front:
        corner = [(p.excess, p.objective) for p in data.front]
        axes.step(
            *columns(corner),
            where="post",
            color=BEST_COLOR,
            lw=1.6,
            label=f"Pareto front ({len(data.front)})",
        )
    places = {
        kind: [(data.drawn(p), p.objective) for p in data.points if p.kind == kind]
        for kind in data.n_by_kind
    }
    scatter_kinds(axes, data.n_by_kind, places)
    for point in data.points:
        if point.number == data.best_number:
            axes.scatter(
                [data.drawn(point)], [point.objective], **ring(f"best: trial {point.number}")
            )
    if len(data.front) <= LABELLED_FRONT:
        for point in data.front:
            axes.annotate(
                f"{point.number}",
                (point.excess, point.objective),
                (-7, 5),
                fontsize=9,
                textcoords="offset points",
                ha="right",
            )
    for note in data.notes:
        axes.plot([], [], ls="none", label=note)
    axes.set_xlim(low, high)
    axes.set_ylim(data.bottom, data.top)
    axes.set_xlabel(
        "largest constraint excess, metric - limit (left is better; shaded: above a limit)"
    )
    axes.set_ylabel(f"{data.metric} ({metric_facts(data.metric).direction})")
    return finished(figure, axes, is_empty=not data.points)


def tradeoff_plotly(data: TradeoffData) -> Any:
    """Draw the trade-off, interactive."""
    figure = go.Figure()
    low, high = data.span
    figure.add_vrect(x0=0.0, x1=high, fillcolor=LIMIT_COLOR, opacity=0.10, line_width=0)
    figure.add_vline(
        x=0.0,
        line={"color": LIMIT_COLOR, "dash": "dash", "width": 1.5},
        annotation_text="limit",
        annotation_position="bottom right",
        annotation_yshift=8,
    )
    if data.front:
        figure.add_scatter(
            x=[p.excess for p in data.front],
            y=[p.objective for p in data.front],
            mode="lines+text" if len(data.front) <= LABELLED_FRONT else "lines",
            text=[f"{p.number}\u00a0\u00a0\u00a0" for p in data.front],  # clear of the marker
            textposition="middle left",
            line={"shape": "hv", "color": BEST_COLOR, "width": 2},
            name=f"Pareto front ({len(data.front)})",
            hoverinfo="skip",
        )
    for kind, count in data.n_by_kind.items():
        mine = [p for p in data.points if p.kind == kind]
        figure.add_scatter(
            x=[data.drawn(p) for p in mine],
            y=[p.objective for p in mine],
            customdata=[[p.number, f"{p.excess:+.3f}"] for p in mine],
            mode="markers",
            marker=plotly_marker(KINDS[kind]),
            name=f"{KINDS[kind].label} ({count})",
            hovertemplate=(
                f"trial %{{customdata[0]}}: {data.metric} %{{y:.3f}}, "
                "excess %{customdata[1]}<extra></extra>"
            ),
        )
    for point in data.points:
        if point.number == data.best_number:
            plotly_ring(figure, data.drawn(point), point.objective, f"best: trial {point.number}")
    for note in data.notes:
        figure.add_scatter(
            x=[None], y=[None], mode="markers", marker={"color": "rgba(0,0,0,0)"}, name=note
        )
    figure.update_xaxes(
        title="largest constraint excess, metric - limit (left is better)", range=[low, high]
    )
    figure.update_yaxes(
        title=f"{data.metric} ({metric_facts(data.metric).direction})",
        range=[data.bottom, data.top],
    )
    return plotly_finished(figure, height=440, is_empty=not data.points)
