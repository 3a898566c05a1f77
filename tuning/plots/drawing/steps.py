"""Draws why trials ended, a bar of steps for each."""

from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tuning.plots.drawing.canvas import finished, new_figure, plotly_finished, whole_ticks
from tuning.plots.steps import StepsData
from tuning.plots.style import ENDINGS, Ending


def steps_matplotlib(data: StepsData) -> Figure:
    """Draw steps made (full) and saved (hatched), one bar for each trial."""
    figure, axes = new_figure(width=8.0, height=min(14.0, max(2.8, 1.6 + 0.24 * len(data.bars))))
    handles: list[Patch] = []
    for ending, count in data.n_by_ending.items():
        style = ENDINGS[ending]
        mine = [b for b in data.bars if b.ending == ending]
        numbers, made = [b.number for b in mine], [b.made for b in mine]
        axes.barh(numbers, made, color=style.color, height=0.72)
        axes.barh(
            numbers,
            [b.saved for b in mine],
            left=made,
            height=0.72,
            facecolor="none",
            edgecolor=style.color,
            hatch="////",
            lw=0.8,
            alpha=0.6,
        )
        handles.append(Patch(color=style.color, label=_steps_label(data, ending, count)))
    if data.bars:
        handles.append(
            Patch(
                facecolor="none", edgecolor="#5d6470", hatch="////", label="hatched: steps not made"
            )
        )
        axes.set_xlim(0, 1.02 * data.planned)
        axes.set_ylim(max(b.number for b in data.bars) + 0.6, -0.6)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=40, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"optimiser steps (a trial that nothing stops makes {data.planned})")
    axes.set_ylabel("trial number")
    return finished(figure, axes, is_empty=not data.bars, handles=handles)


def steps_plotly(data: StepsData) -> Any:
    """Draw steps made (full) and saved (hatched), interactive."""
    figure = go.Figure()
    for ending, count in data.n_by_ending.items():
        style = ENDINGS[ending]
        mine = [b for b in data.bars if b.ending == ending]
        numbers = [b.number for b in mine]
        figure.add_bar(
            orientation="h",
            y=numbers,
            x=[b.made for b in mine],
            marker={"color": style.color},
            name=_steps_label(data, ending, count),
            legendgroup=ending,
            hovertemplate=f"trial %{{y}}: %{{x}} steps made, {style.label}<extra></extra>",
        )
        figure.add_bar(
            orientation="h",
            y=numbers,
            x=[b.saved for b in mine],
            marker={
                "color": "rgba(0,0,0,0)",
                "line": {"color": style.color, "width": 1},
                "pattern": {"shape": "/", "fgcolor": style.color, "size": 7, "solidity": 0.2},
            },
            showlegend=False,
            legendgroup=ending,
            hovertemplate="trial %{y}: %{x} steps not made<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(
        title=f"optimiser steps, hatched: not made (a trial that nothing stops makes {data.planned})",
        range=[0, 1.02 * data.planned],
        **whole_ticks([0, data.planned]),
    )
    figure.update_yaxes(
        title="trial number",
        autorange="reversed",
        **whole_ticks([b.number for b in data.bars], at_most=45),
    )
    height = min(1000, max(280, 170 + 20 * len(data.bars)))
    return plotly_finished(figure, height=height, is_empty=not data.bars)


def _steps_label(data: StepsData, ending: Ending, count: int) -> str:
    trials = f"{count} trial{'' if count == 1 else 's'}"
    saved = data.saved_by(ending)
    return f"{ENDINGS[ending].label} ({trials}{f', {saved} steps saved' if saved else ''})"
