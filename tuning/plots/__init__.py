"""The figures of a run, as plain values: records in, numbers and words out. :mod:`tuning.plots.drawing` draws them.

Nothing here imports plotly or matplotlib, so what a figure says can be read without either.
"""

from tuning.plots.curves import Curve, CurvesData, Panel, curves_data
from tuning.plots.history import HistoryData, HistoryPoint, history_data
from tuning.plots.steps import StepsBar, StepsData, steps_data
from tuning.plots.tradeoff import TradeoffData, TradeoffPoint, tradeoff_data

__all__ = [
    "Curve",
    "CurvesData",
    "HistoryData",
    "HistoryPoint",
    "Panel",
    "StepsBar",
    "StepsData",
    "TradeoffData",
    "TradeoffPoint",
    "curves_data",
    "history_data",
    "steps_data",
    "tradeoff_data",
]
