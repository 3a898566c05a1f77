"""Door to matplotlib and plotly: draws the figures of a run, each with either; the caller saves.

Importing this takes a second, so only the report does. No text of a run is drawn except names from fixed
lists, since plotly and matplotlib interpret markup.
"""

from tuning.plots.drawing.canvas import plotly_js
from tuning.plots.drawing.curves import curves_matplotlib, curves_plotly
from tuning.plots.drawing.history import history_matplotlib, history_plotly
from tuning.plots.drawing.steps import steps_matplotlib, steps_plotly
from tuning.plots.drawing.tradeoff import tradeoff_matplotlib, tradeoff_plotly

__all__ = [
    "curves_matplotlib",
    "curves_plotly",
    "history_matplotlib",
    "history_plotly",
    "plotly_js",
    "steps_matplotlib",
    "steps_plotly",
    "tradeoff_matplotlib",
    "tradeoff_plotly",
]
