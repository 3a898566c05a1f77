"""The figures of a run, as plain values: records in, numbers and words out. :mod:`tuning.plots.drawing` draws them.

Nothing here imports plotly or matplotlib, so what a figure says can be read without either.
"""

from tuning.plots.curves import Curve, CurvesData, Panel, curves_data, levels_data
from tuning.plots.history import HistoryData, HistoryPoint, history_data
from tuning.plots.importances import ImportanceBar, ImportancesData, importances_data
from tuning.plots.pair import PairData, PairPoint, pair_data
from tuning.plots.parallel import ParallelData, ParallelLine, parallel_data
from tuning.plots.scales import Scale, scales
from tuning.plots.slices import Slice, SlicePoint, SlicesData, slices_data
from tuning.plots.steps import StepsBar, StepsData, steps_data
from tuning.plots.timeline import Saving, Span, TimelineData, timeline_data
from tuning.plots.tradeoff import TradeoffData, TradeoffPoint, tradeoff_data

__all__ = [
    "Curve",
    "CurvesData",
    "HistoryData",
    "HistoryPoint",
    "ImportanceBar",
    "ImportancesData",
    "PairData",
    "PairPoint",
    "Panel",
    "ParallelData",
    "ParallelLine",
    "Saving",
    "Scale",
    "Slice",
    "SlicePoint",
    "SlicesData",
    "Span",
    "StepsBar",
    "StepsData",
    "TimelineData",
    "TradeoffData",
    "TradeoffPoint",
    "curves_data",
    "history_data",
    "importances_data",
    "levels_data",
    "pair_data",
    "parallel_data",
    "scales",
    "slices_data",
    "steps_data",
    "timeline_data",
    "tradeoff_data",
]
