"""Draws parallel coordinates, as plain lines: they need no WebGL, and follow the page's colours."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

from tuning.plots.drawing.canvas import finished, new_figure, plotly_finished
from tuning.plots.parallel import ParallelData, ParallelLine
from tuning.plots.style import BEST_COLOR, KINDS, LIMIT_COLOR


def parallel_matplotlib(data: ParallelData) -> Figure:
    """Draw a line for each trial."""
    n = len(data.axes)
    figure, axes = new_figure(width=max(6.0, 1.5 * n), height=4.6)
    for i, scale in enumerate(data.axes):
        axes.axvline(i, color=LIMIT_COLOR, lw=1.0)
        for place, label in scale.marks:
            axes.annotate(
                label, (i, place), (4, 0), fontsize=7.5, textcoords="offset points", va="center"
            )
    named: set[str] = set()
    for line in sorted(data.lines, key=lambda one: one.is_best):
        style = KINDS[line.kind]
        label = f"{style.label} ({data.n_by_kind[line.kind]})"
        look: dict[str, Any] = {"color": style.color, "lw": 1.2, "alpha": 0.6}
        if line.is_best:
            label = f"best: trial {line.number}"
            look = {"color": BEST_COLOR, "lw": 2.8}
        heights = [math.nan if p is None else p for p in line.places]
        axes.plot(range(n), heights, label="_" if label in named else label, marker=".", **look)
        named.add(label)
    result = finished(figure, axes, is_empty=not data.lines)
    axes.grid(visible=False)
    axes.set_xticks(range(n), [scale.name for scale in data.axes])
    axes.set_xlim(-0.1, n - 0.6)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    return result


def parallel_plotly(data: ParallelData) -> Any:
    """Draw a line for each trial, interactive; a kind is one trace, with gaps between its trials."""
    figure = go.Figure()
    n = len(data.axes)
    for i, scale in enumerate(data.axes if data.lines else ()):
        figure.add_vline(x=i, line={"color": LIMIT_COLOR, "width": 1})
        for place, label in scale.marks:
            figure.add_annotation(
                x=i,
                y=place,
                text=label,
                showarrow=False,
                xanchor="left",
                xshift=4,
                font={"size": 10},
            )
    for kind, count in data.n_by_kind.items():
        mine = [line for line in data.lines if line.kind == kind and not line.is_best]
        if mine:
            _add_lines(figure, mine, KINDS[kind].color, 1.4, f"{KINDS[kind].label} ({count})")
    for line in data.lines:
        if line.is_best:
            _add_lines(figure, [line], BEST_COLOR, 3.5, f"best: trial {line.number}")
    figure = plotly_finished(figure, height=420, is_empty=not data.lines)
    if data.lines:
        figure.update_xaxes(
            tickvals=list(range(n)),
            ticktext=[scale.name for scale in data.axes],
            range=[-0.15, n - 0.4],
            showgrid=False,
        )
        figure.update_yaxes(range=[-0.06, 1.06], showticklabels=False, showgrid=False)
    figure.update_layout(margin={"l": 20, "r": 20})
    return figure


def _add_lines(
    figure: Any, lines: Sequence[ParallelLine], color: str, width: float, name: str
) -> None:
    xs: list[int | None] = []
    ys: list[float | None] = []
    numbers: list[int | None] = []
    for line in lines:
        xs += [*range(len(line.places)), None]
        ys += [*line.places, None]
        numbers += [*[line.number] * len(line.places), None]
    figure.add_scatter(
        x=xs,
        y=ys,
        customdata=numbers,
        mode="lines+markers",
        line={"color": color, "width": width},
        marker={"size": 5},
        opacity=1.0 if width > 2 else 0.7,
        name=name,
        hovertemplate="trial %{customdata}<extra></extra>",
    )
