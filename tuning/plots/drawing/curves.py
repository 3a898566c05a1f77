"""Draws the curves of trials, a panel for each metric."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from tuning.plots.curves import Curve, CurvesData, Panel
from tuning.plots.drawing.canvas import (
    plotly_finished,
    plotly_marker,
    plotly_ring,
    ring,
    say_empty,
    tidy,
    whole_ticks,
)
from tuning.plots.style import BEST_COLOR, ENDINGS, KINDS, LIMIT_COLOR


def curves_matplotlib(data: CurvesData) -> Figure:
    """Draw the trial curves, one panel for each metric."""
    n = len(data.panels)
    figure = Figure(figsize=(1.0 + 3.7 * n, 4.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr, call-arg]  # constrained
    row: Sequence[Axes] = list(figure.subplots(1, n, squeeze=False)[0])
    for axes, panel in zip(row, data.panels, strict=True):
        if panel.limit is not None:
            axes.axhline(panel.limit, color=LIMIT_COLOR, lw=1.4, ls="--")
        for curve in sorted(data.curves, key=lambda c: c.is_best):
            values = [math.nan if v is None else v for v in curve.drawn(panel)]
            look: dict[str, Any] = {"color": KINDS[curve.kind].color, "lw": 1.1, "alpha": 0.65}
            if curve.is_best:
                look = {"color": BEST_COLOR, "lw": 2.6, "zorder": 4}
            axes.plot(curve.steps, values, **look)
            end = curve.end(panel)
            if curve.ending is not None and end is not None:
                style = ENDINGS[curve.ending]
                axes.scatter(*end, color=style.color, marker=style.marker, s=42, zorder=5)
            chosen, fall = curve.chosen(panel), curve.fall(panel)
            if curve.is_best and chosen is not None:
                step, value = chosen
                axes.scatter([step], [math.nan if value is None else value], **ring(""))
            if curve.is_best and fall is not None:
                axes.plot([fall[0]] * 2, fall[1:], color=BEST_COLOR, lw=1.6, ls=":", zorder=4)
        tidy(axes)
        axes.set_xlabel("optimiser step")
        name, *rest = panel.words
        axes.set_ylabel(f"{name}\n{', '.join(rest)}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not data.curves:
            say_empty(axes)
    handles: list[Line2D] = []
    for kind, count in data.n_by_kind.items():
        handles.append(
            Line2D([], [], color=KINDS[kind].color, label=f"{KINDS[kind].label} ({count})")
        )
    for curve in data.curves:
        if curve.is_best:
            label = f"best: trial {curve.number}"
            handles.append(Line2D([], [], color=BEST_COLOR, lw=2.6, label=label))
            look = {"ls": "none", "marker": "o", "ms": 10, "mfc": "none", "mew": 2.0}
            handles.append(Line2D([], [], color=BEST_COLOR, label=f"ring: {curve.ring}", **look))
    for line in dict.fromkeys(p.line for p in data.panels if p.limit is not None):
        handles.append(Line2D([], [], color=LIMIT_COLOR, ls="--", label=line))
    for ending, count in data.n_by_ending.items():
        style = ENDINGS[ending]
        handles.append(
            Line2D(
                [],
                [],
                ls="none",
                color=style.color,
                marker=style.marker,
                label=f"ended: {style.label} ({count})",
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def curves_plotly(data: CurvesData) -> Any:
    """Draw the trial curves, interactive: one panel below the other."""
    n = len(data.panels)
    figure = make_subplots(rows=n, cols=1, shared_xaxes=True, vertical_spacing=0.16 / n)
    for row, panel in enumerate(data.panels, start=1):
        for kind, count in data.n_by_kind.items():
            mine = [c for c in data.curves if c.kind == kind and not c.is_best]
            if mine:
                _add_lines(
                    figure,
                    mine,
                    panel,
                    row,
                    KINDS[kind].color,
                    1.3,
                    f"{KINDS[kind].label} ({count})",
                )
        for curve in data.curves:
            if curve.is_best:
                _add_lines(
                    figure, [curve], panel, row, BEST_COLOR, 3.5, f"best: trial {curve.number}"
                )
        for ending, count in data.n_by_ending.items():
            ends = [(c.number, c.end(panel)) for c in data.curves if c.ending == ending]
            shown = [(number, *end) for number, end in ends if end is not None]
            figure.add_scatter(
                x=[s for _, s, _ in shown],
                y=[v for _, _, v in shown],
                customdata=[number for number, _, _ in shown],
                mode="markers",
                marker=plotly_marker(ENDINGS[ending], size=8),
                name=f"ended: {ENDINGS[ending].label} ({count})",
                legendgroup=f"ended {ending}",
                showlegend=row == 1,
                hovertemplate=f"trial %{{customdata}}: {ENDINGS[ending].label}<extra></extra>",
                row=row,
                col=1,
            )
        for curve in data.curves:
            chosen, fall = curve.chosen(panel), curve.fall(panel)
            place: dict[str, Any] = {"row": row, "col": 1, "legendgroup": "chosen"}
            if curve.is_best and chosen is not None:
                plotly_ring(figure, *chosen, curve.ring, showlegend=row == 1, **place)
            if curve.is_best and fall is not None:
                figure.add_scatter(
                    x=[fall[0]] * 2,
                    y=list(fall[1:]),
                    mode="lines",
                    line={"color": BEST_COLOR, "width": 2, "dash": "dot"},
                    showlegend=False,
                    hoverinfo="skip",
                    **place,
                )
        if panel.limit is not None and data.curves:  # not on a panel without a trace
            figure.add_hline(
                y=panel.limit,
                row=row,
                col=1,
                line={"color": LIMIT_COLOR, "dash": "dash", "width": 1.5},
                annotation_text=f"{panel.line} {panel.limit:.4g}",
                annotation_position="top left",
            )
        figure.update_yaxes(title="<br>".join(panel.words), row=row, col=1)
    figure.update_xaxes(**whole_ticks([s for c in data.curves for s in c.steps]))
    figure.update_xaxes(title="optimiser step", row=n, col=1)
    return plotly_finished(figure, height=120 + 240 * n, is_empty=not data.curves)


def _add_lines(
    figure: Any,
    curves: Sequence[Curve],
    panel: Panel,
    row: int,
    color: str,
    width: float,
    name: str,
) -> None:
    """Many curves as one trace, separated by gaps: a thousand trials stay quick to draw."""
    xs: list[int | None] = []
    ys: list[float | None] = []
    texts: list[str] = []
    for curve in curves:
        true = [f"trial {curve.number}: {v:.3f}" for v in curve.values[panel.metric]]
        xs += [*curve.steps, None]
        ys += [*curve.drawn(panel), None]
        texts += [*true, ""]
    figure.add_scatter(
        x=xs,
        y=ys,
        customdata=texts,
        mode="lines",
        line={"color": color, "width": width},
        opacity=1.0 if width > 2 else 0.75,
        name=name,
        legendgroup=name,
        showlegend=row == 1,
        hovertemplate="%{customdata} at step %{x}<extra></extra>",
        row=row,
        col=1,
    )
