"""The figures of a report: each with its heading, how to read it, and both drawings."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Literal

from tuning import plots
from tuning.knobs import feasible_window, good_rule
from tuning.plots import drawing
from tuning.run import Run
from tuning.wording import duration

if TYPE_CHECKING:
    from tuning.importance import Importances, Kind

DPI: Final = 130

Part = Literal["search", "fields"]
"""Where a figure stands: how the search went, or what it says of the searched fields."""


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: Name of its file.
        part: Where it stands.
        title: Its heading.
        caption: How to read it.
        drawn: Draws it for paper, and for a page without scripts.
        panels: Interactive drawings by name: one, or several that the page lays out.
        is_wide: Whether a narrow window scrolls it instead of squeezing it.
    """

    name: str
    part: Part
    title: str
    caption: str
    drawn: Callable[[], Any]
    panels: Mapping[str, Any]
    is_wide: bool = False

    @cached_property
    def png(self) -> bytes:
        """The picture for paper, drawn when it is first asked for."""
        return _png(self.drawn())

    @property
    def data_uri(self) -> str:
        """The picture inside the page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


def report_figures(run: Run) -> list[ReportFigure]:
    """The figures of a run, in their order on the page."""
    from tuning.importance import MEANINGS, importances, not_judged  # loads Optuna

    found = importances(run.spec.space, run.trials)
    left_out = {} if found is None else not_judged(run.spec.space, run.trials)
    return [*_search_figures(run), *_field_figures(run, found, MEANINGS, left_out)]


def _search_figures(run: Run) -> list[ReportFigure]:
    history, tradeoff = plots.history_data(run), plots.tradeoff_data(run)
    curves, levels = plots.curves_data(run), plots.levels_data(run)
    steps, timeline = plots.steps_data(run), plots.timeline_data(run)
    side = "above" if history.is_minimized else "below"
    paused = f"; {timeline.n_pauses} pauses are left out" if timeline.n_pauses else ""
    return [
        ReportFigure(
            name="history",
            part="search",
            title="Optimisation history",
            caption="Value of each finished trial. A trial without a feasible probe has a penalised value "
            f"{side} {history.worst:g}; one that broke has none and stands at the "
            f"{'top' if history.is_minimized else 'bottom'}.",
            drawn=partial(drawing.history_matplotlib, history),
            panels={"history": _plain(drawing.history_plotly(history))},
        ),
        ReportFigure(
            name="tradeoff",
            part="search",
            title="Forgetting against damage",
            caption="Each finished trial at the probe that counts. Left of the line every constraint holds; "
            "from the Pareto front, no trial forgets more without coming closer to a limit.",
            drawn=partial(drawing.tradeoff_matplotlib, tradeoff),
            panels={"tradeoff": _plain(drawing.tradeoff_plotly(tradeoff))},
        ),
        ReportFigure(
            name="curves",
            part="search",
            title="Trial curves",
            caption="Every probe of every trial. A closure that falls again is over-unlearning. Values far "
            f"above the limit are cut at the upper edge.{_landing_words(curves)}",
            drawn=partial(drawing.curves_matplotlib, curves),
            panels={"curves": _plain(drawing.curves_plotly(curves))},
        ),
        ReportFigure(
            name="levels",
            part="search",
            title="Learning curves",
            caption="Cross-entropy of the forget, retain and general set at every probe of every trial: the "
            "forget set should rise to its target and stay there, the others should stay where they began.",
            drawn=partial(drawing.curves_matplotlib, levels),
            panels={"levels": _plain(drawing.curves_plotly(levels))},
        ),
        ReportFigure(
            name="steps",
            part="search",
            title="Why trials ended",
            caption="Optimiser steps that each trial made, and the hatched ones that stopping it early saved.",
            drawn=partial(drawing.steps_matplotlib, steps),
            panels={"steps": _plain(drawing.steps_plotly(steps))},
        ),
        ReportFigure(
            name="timeline",
            part="search",
            title="Timeline of workers",
            caption="Which trial each worker was busy with. In the last lane, end to end, the work that stopping "
            "trials early saved, each at its own speed: "
            f"{duration(timeline.saved_s)} beside {duration(timeline.busy_s)} of work done{paused}.",
            drawn=partial(drawing.timeline_matplotlib, timeline),
            panels={"timeline": _plain(drawing.timeline_plotly(timeline))},
            is_wide=True,
        ),
    ]


def _field_figures(
    run: Run,
    found: "Importances | None",
    meanings: Mapping["Kind", str],
    left_out: Mapping[str, str],
) -> list[ReportFigure]:
    shares = plots.importances_data(run, found)
    space = run.spec.space
    windows = {name: feasible_window(run.trials, name, d) for name, d in space.items()}
    slices, parallel = plots.slices_data(run, windows), plots.parallel_data(run)
    panels = drawing.slices_plotly(slices)
    not_judged = ", ".join(f"{name} ({why})" for name, why in left_out.items())
    figures = [
        ReportFigure(
            name="importances",
            part="fields",
            title="Which fields mattered",
            caption=f"PED-ANOVA: {meanings['ped_anova']}. fANOVA: {meanings['fanova']}, averaged over the others. "
            "One that matters only where the others are good already has much of the first and little of the "
            "second. Thin lines: the middle 90 % when trials are drawn again."
            + (f" Not judged: {not_judged}." if not_judged else ""),
            drawn=partial(drawing.importances_matplotlib, shares),
            panels={"importances": _plain(drawing.importances_plotly(shares))},
        ),
        ReportFigure(
            name="slices",
            part="fields",
            title="Value over each field",
            caption="Each finished trial, in the colours of the optimisation history. Shaded: from the lowest to "
            "the highest value of the field among the good trials, which kept every limit and "
            f"{good_rule(run.spec.objective)}.",
            drawn=partial(drawing.slices_matplotlib, slices),
            panels={f"slices_{i}": _plain(panel) for i, panel in enumerate(panels)},
        ),
    ]
    order = [] if found is None else list(found.ped_anova)
    pair = plots.pair_data(run, order)
    if pair is not None:
        why = "the two that mattered most by PED-ANOVA" if order else "the first two of the file"
        figures.append(
            ReportFigure(
                name="pair",
                part="fields",
                title=f"Rank over {pair.x.name} and {pair.y.name}",
                caption=f"These are {why}. Dark trials are the better ones; dark and pale side by side mean that "
                "another field decides.",
                drawn=partial(drawing.pair_matplotlib, pair),
                panels={"pair": _plain(drawing.pair_plotly(pair))},
            )
        )
    figures.append(
        ReportFigure(
            name="parallel",
            part="fields",
            title="All fields side by side",
            caption="A line for each finished trial through its fields, its largest excess over a limit (below 0 "
            "every constraint holds) and its value; the last two are cut as in the figures above.",
            drawn=partial(drawing.parallel_matplotlib, parallel),
            panels={"parallel": _plain(drawing.parallel_plotly(parallel))},
            is_wide=True,
        )
    )
    return figures


def _landing_words(curves: plots.CurvesData) -> str:
    if not any(curve.is_best and curve.landed for curve in curves.curves):
        return ""
    return (
        " The ring stands off the curve because the best trial overshot: its trained change was scaled back onto "
        "the target (dotted), and that is what counts and is saved."
    )


def _plain(figure: Any) -> Any:
    """A plotly figure as plain values; NaN became null."""
    return json.loads(figure.to_json())


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
