"""Draws the figures of a guideline's page, as SVG."""

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuning.plots.drawing.canvas import new_figure, tidy
from tuning.plots.guideline import EffectData, LinesData
from tuning.plots.style import BEST_COLOR, LIMIT_COLOR

_COLORS = ("#2b83ba", "#d55e00", "#009e73", "#e69f00", "#a0429b", "#56b4e9", "#5d4a1f", "#8a8f98")
_MARKERS = ("o", "s", "^", "d", "X", "P", "v", "*")

_SHORT_AXIS = 30.0
"""Largest over smallest value of a logarithmic axis that has one power of ten, or two."""


def lines_matplotlib(data: LinesData) -> Figure:
    """Draw lines with a marker at each point, the legend beside them."""
    figure, axes = new_figure(width=8.0, height=4.4)
    if data.level is not None:
        axes.axhline(data.level, color=LIMIT_COLOR, lw=1.4, ls="--", label=data.level_label)
    for i, line in enumerate(data.lines):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        axes.plot(line.x, line.y, color=color, marker=marker, lw=1.6, ms=5, label=line.label)
    if data.is_log:
        axes.set_xscale("log")
        _tick_values_of_a_short_axis(axes, sorted({x for line in data.lines for x in line.x}))
    tidy(axes)
    axes.set_title(data.title, fontsize=10, loc="left")
    axes.set_xlabel(data.x_label)
    axes.set_ylabel(data.y_label)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _tick_values_of_a_short_axis(axes: Axes, values: Sequence[float]) -> None:
    """Name the values themselves where powers of ten are too few to read an axis by."""
    if values and values[-1] < _SHORT_AXIS * values[0]:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()


def effects_matplotlib(panels: Sequence[EffectData]) -> Figure:
    """Draw effects below each other: mean, interval, units as small dots, and the claimed region shaded."""
    figure = Figure(figsize=(8.0, 1.7 * len(panels)), layout="constrained")
    every: Sequence[Axes] = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    for axes, data in zip(every, panels, strict=True):
        _draw_effect(axes, data)
    return figure


def _draw_effect(axes: Axes, data: EffectData) -> None:
    is_bounded = math.isfinite(data.low) and math.isfinite(data.high)
    if is_bounded:
        axes.plot([data.low, data.high], [0, 0], color="#2b83ba", lw=2.2, zorder=3)
    axes.scatter([data.value], [0], color="#2b83ba", s=52, zorder=4)
    heights = [0.2 + 0.08 * data.units[:i].count(unit) for i, unit in enumerate(data.units)]
    axes.scatter(data.units, heights, color="#5d6470", s=10, zorder=5)
    left, right = axes.get_xlim()
    ends = [end for end in (data.claimed_low, data.claimed_high) if math.isfinite(end)]
    left, right = min(left, *ends), max(right, *ends)
    margin = 0.06 * (right - left or 1.0)
    left, right = left - margin, right + margin
    for end in ends:
        axes.axvline(end, color=LIMIT_COLOR, lw=1.2, ls="--")
    shaded = max(left, data.claimed_low), min(right, data.claimed_high)
    axes.axvspan(*shaded, color=BEST_COLOR, alpha=0.10, lw=0)
    axes.set_xlim(left, right)
    axes.set_ylim(-0.3, max([0.6, *heights]) + 0.15)
    tidy(axes)
    axes.set_yticks([])
    axes.set_title(data.title, fontsize=10, loc="left")
    axes.set_xlabel(data.x_label, fontsize=8)


def svg(figure: Figure) -> str:
    """A figure as SVG text that is the same whenever it is drawn; its ground is white, also on dark pages."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "unlearn-tune", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
