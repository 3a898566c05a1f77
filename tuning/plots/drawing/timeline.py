"""Draws the timeline: a lane for each worker, and a last one for the work that was saved."""

from typing import Any, Final

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tuning.plots.drawing.canvas import finished, new_figure, plotly_finished
from tuning.plots.style import ENDINGS, LIMIT_COLOR, Ending
from tuning.plots.timeline import TimelineData

EMPTY: Final = "no event log"
_UNFINISHED: Final = "broken or unfinished"


def timeline_matplotlib(data: TimelineData) -> Figure:
    """Draw workers over time."""
    figure, axes = new_figure(width=8.0, height=min(12.0, 1.8 + 0.5 * (data.n_lanes + 1)))
    for span in data.spans:
        length = span.end - span.begin
        axes.barh(
            span.lane,
            length,
            left=span.begin,
            height=0.7,
            color=_color(span.ending),
            edgecolor="white",
        )
        if len(data.spans) <= 60:
            axes.annotate(
                f"{span.number}",
                (span.begin + length / 2, span.lane),
                ha="center",
                va="center",
                fontsize=7.5,
                color="white",
            )
    for saving in data.savings:
        axes.barh(
            data.n_lanes,
            saving.end - saving.begin,
            left=saving.begin,
            height=0.7,
            facecolor="none",
            edgecolor=ENDINGS[saving.ending].color,
            hatch="////",
            lw=0.8,
        )
    handles = [
        Patch(color=ENDINGS[ending].color, label=f"{ENDINGS[ending].label} ({count})")
        for ending, count in data.n_by_ending.items()
    ]
    if any(s.ending is None for s in data.spans):
        handles.append(Patch(color=LIMIT_COLOR, label=_UNFINISHED))
    if data.savings:
        handles.append(
            Patch(facecolor="none", edgecolor="#5d6470", hatch="////", label="hatched: saved")
        )
    axes.set_yticks(range(data.n_lanes + 1), _lanes(data))
    axes.set_ylim(data.n_lanes + 0.6, -0.6)
    axes.set_xlabel("seconds")
    return finished(figure, axes, is_empty=not data.spans, handles=handles, empty=EMPTY)


def timeline_plotly(data: TimelineData) -> Any:
    """Draw workers over time, interactive."""
    figure = go.Figure()
    endings: list[Ending | None] = [*data.n_by_ending]
    if any(s.ending is None for s in data.spans):
        endings.append(None)
    for ending in endings:
        mine = [s for s in data.spans if s.ending == ending]
        label = _UNFINISHED if ending is None else ENDINGS[ending].label
        figure.add_bar(
            orientation="h",
            y=[s.lane for s in mine],
            x=[s.end - s.begin for s in mine],
            base=[s.begin for s in mine],
            customdata=[
                f"trial {s.number}, attempt {s.attempt}: {s.end - s.begin:.0f} s" for s in mine
            ],
            text=[str(s.number) for s in mine] if len(data.spans) <= 60 else None,
            textposition="inside",
            insidetextanchor="middle",
            insidetextfont={"color": "white"},
            marker={
                "color": _color(ending),
                "line": {"width": 1, "color": "rgba(255,255,255,0.6)"},
            },
            name=f"{label} ({len(mine)})",
            hovertemplate=f"%{{customdata}}, {label}<extra></extra>",
        )
    if data.savings:
        colors = [ENDINGS[s.ending].color for s in data.savings]
        figure.add_bar(
            orientation="h",
            y=[data.n_lanes] * len(data.savings),
            x=[s.end - s.begin for s in data.savings],
            base=[s.begin for s in data.savings],
            customdata=[
                f"trial {s.number}: {s.end - s.begin:.0f} s not needed" for s in data.savings
            ],
            marker={
                "color": "rgba(0,0,0,0)",
                "line": {"color": colors, "width": 1},
                "pattern": {"shape": "/", "fgcolor": colors, "size": 7, "solidity": 0.2},
            },
            name="hatched: saved",
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(
        tickvals=list(range(data.n_lanes + 1)),
        ticktext=_lanes(data),
        range=[data.n_lanes + 0.6, -0.6],
    )
    height = min(900, 190 + 44 * (data.n_lanes + 1))
    return plotly_finished(figure, height=height, is_empty=not data.spans, empty=EMPTY)


def _lanes(data: TimelineData) -> list[str]:
    return [*(f"worker {i + 1}" for i in range(data.n_lanes)), "saved"]


def _color(ending: Ending | None) -> str:
    return LIMIT_COLOR if ending is None else ENDINGS[ending].color
