"""Draws importances: for each searched field a bar by either evaluator, with its interval."""

from typing import Any, Final

import plotly.graph_objects as go
from matplotlib.figure import Figure

from tuning.plots.drawing.canvas import finished, new_figure, plotly_finished
from tuning.plots.importances import TOO_FEW, ImportancesData, Share

_NAMES: Final = ("PED-ANOVA", "fANOVA")
_COLORS: Final = ("#2b83ba", "#e69f00")
_HEIGHT: Final = 0.36


def importances_matplotlib(data: ImportancesData) -> Figure:
    """Draw both importances of each field."""
    figure, axes = new_figure(width=8.0, height=1.6 + 0.6 * max(2, len(data.bars)))
    for i, shares in enumerate(_by_evaluator(data)):
        axes.barh(
            [j + (i - 0.5) * _HEIGHT for j in range(len(shares))],
            [value for value, _, _ in shares],
            height=_HEIGHT,
            color=_COLORS[i],
            xerr=[[v - low for v, low, _ in shares], [high - v for v, _, high in shares]],
            error_kw={"ecolor": "#5d6470", "elinewidth": 1.2, "capsize": 3},
            label=_NAMES[i],
        )
    axes.set_yticks(range(len(data.bars)), [bar.name for bar in data.bars])
    axes.set_ylim(len(data.bars) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel(_axis(data))
    return finished(figure, axes, is_empty=not data.bars, empty=TOO_FEW)


def importances_plotly(data: ImportancesData) -> Any:
    """Draw both importances of each field, interactive."""
    figure = go.Figure()
    names = [bar.name for bar in data.bars]
    for i, shares in enumerate(_by_evaluator(data) if data.bars else ()):
        figure.add_bar(
            orientation="h",
            y=names,
            x=[value for value, _, _ in shares],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [high - v for v, _, high in shares],
                "arrayminus": [v - low for v, low, _ in shares],
                "color": "#8a8f98",
                "thickness": 1.4,
            },
            marker={"color": _COLORS[i]},
            name=_NAMES[i],
            hovertemplate=f"%{{y}}: %{{x:.2f}} by {_NAMES[i]}<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_xaxes(title=_axis(data), range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    height = 150 + 60 * max(2, len(data.bars))
    return plotly_finished(figure, height=height, is_empty=not data.bars, empty=TOO_FEW)


def _by_evaluator(data: ImportancesData) -> tuple[list[Share], list[Share]]:
    return [bar.ped_anova for bar in data.bars], [bar.fanova for bar in data.bars]


def _axis(data: ImportancesData) -> str:
    return f"share, of {data.n_trials} trials"
