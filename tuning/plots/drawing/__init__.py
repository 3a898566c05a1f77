"""Door to matplotlib and plotly: draws the figures of a run, each with either; the caller saves.

Importing this takes a second, so only the report does. No text of a run is drawn except names from fixed
lists, since plotly and matplotlib interpret markup.
"""

from tuning.plots.drawing.canvas import plotly_js
from tuning.plots.drawing.curves import curves_matplotlib, curves_plotly
from tuning.plots.drawing.history import history_matplotlib, history_plotly
from tuning.plots.drawing.importances import importances_matplotlib, importances_plotly
from tuning.plots.drawing.pair import pair_matplotlib, pair_plotly
from tuning.plots.drawing.parallel import parallel_matplotlib, parallel_plotly
from tuning.plots.drawing.slices import slices_matplotlib, slices_plotly
from tuning.plots.drawing.steps import steps_matplotlib, steps_plotly
from tuning.plots.drawing.timeline import timeline_matplotlib, timeline_plotly
from tuning.plots.drawing.tradeoff import tradeoff_matplotlib, tradeoff_plotly

__all__ = [
    "curves_matplotlib",
    "curves_plotly",
    "history_matplotlib",
    "history_plotly",
    "importances_matplotlib",
    "importances_plotly",
    "pair_matplotlib",
    "pair_plotly",
    "parallel_matplotlib",
    "parallel_plotly",
    "plotly_js",
    "slices_matplotlib",
    "slices_plotly",
    "steps_matplotlib",
    "steps_plotly",
    "timeline_matplotlib",
    "timeline_plotly",
    "tradeoff_matplotlib",
    "tradeoff_plotly",
]
