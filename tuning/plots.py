"""Door to matplotlib and plotly: the figures of a run.

Each figure has an extract function (records in, plain values out) and two draw functions (plain values
in, figure out); the caller saves. Importing this module costs a second, so only the report imports it.
No text of a run is drawn except names from fixed lists, since plotly and matplotlib interpret markup.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from tuning.records import Run, TrialRecord
from tuning.results import best, excess, pareto_front

Kind = Literal["feasible", "infeasible", "pruned", "failed", "running"]
"""What a trial came to, as figures tell it apart."""

Ending = Literal[
    "budget",
    "past_target",
    "stop_when",
    "retain_guard",
    "non_finite",
    "ranking_pruner",
    "failed",
    "other",
]
"""Why a trial ended, as figures tell it apart."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one kind or ending looks: legend text, colour, and marker in either library."""

    label: str
    color: str
    marker: str
    symbol: str


# Okabe and Ito's colours: told apart with any colour vision, on light and dark ground.
KINDS: Final[Mapping[Kind, Style]] = {
    "feasible": Style(label="COMPLETE, feasible", color="#2b83ba", marker="o", symbol="circle"),
    "infeasible": Style(label="COMPLETE, infeasible", color="#e69f00", marker="s", symbol="square"),
    "pruned": Style(label="PRUNED", color="#d55e00", marker="X", symbol="x"),
    "failed": Style(label="FAIL", color="#8a8f98", marker="d", symbol="diamond"),
    "running": Style(label="RUNNING", color="#cc79a7", marker=".", symbol="circle-open"),
}
ENDINGS: Final[Mapping[Ending, Style]] = {
    "budget": Style(label="budget reached", color="#2b83ba", marker=".", symbol="circle"),
    "past_target": Style(label="past target", color="#e69f00", marker="^", symbol="triangle-up"),
    "stop_when": Style(label="stop rule", color="#009e73", marker="*", symbol="star"),
    "retain_guard": Style(label="retain guard", color="#d55e00", marker="X", symbol="x"),
    "non_finite": Style(label="diverged", color="#a0429b", marker="P", symbol="cross"),
    "ranking_pruner": Style(label="ranking pruner", color="#56b4e9", marker="s", symbol="square"),
    "failed": Style(label="FAIL", color="#8a8f98", marker="d", symbol="diamond"),
    "other": Style(label="other", color="#5d6470", marker="v", symbol="triangle-down"),
}
BEST_COLOR: Final = "#009e73"
LIMIT_COLOR: Final = "#8a8f98"

LOWEST_SHOWN: Final = -2.0
"""Penalised values below this are drawn here, so that one wild trial does not flatten the others."""

TOP: Final = 1.18
"""Upper end of axes of an objective, which is at most 1: room for a marker at 1."""

LABELLED_FRONT: Final = 10
"""A longer Pareto front is drawn without the trials' numbers."""

_LEVELS: Final = ("retain", "general")


def unit(metric: str) -> str:
    """Unit of a metric, for axes and tables."""
    if metric.endswith("accuracy_drop"):
        return "share of tokens"
    if metric.endswith(("_drop", "_nll")):
        return "nats per token"
    return ""


def kind_of(trial: TrialRecord) -> Kind:
    """What a trial came to."""
    if trial.state == "COMPLETE":
        return "feasible" if trial.feasible else "infeasible"
    if trial.state == "PRUNED":
        return "pruned"
    return "failed" if trial.state == "FAIL" else "running"


def ending_of(trial: TrialRecord) -> Ending:
    """Why a trial ended."""
    if trial.state == "FAIL":
        return "failed"
    return next((e for e in ENDINGS if e == trial.stopped_by), "other")


def number_or_nan(value: Any) -> float:
    """A number from a record or a history line, where NaN and infinities stand as words."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


# --- (a) optimisation history -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """A finished trial: its value, ``None`` if it has no finite one, and the best feasible value so far."""

    number: int
    kind: Kind
    value: float | None
    best_so_far: float | None


@dataclass(frozen=True, kw_only=True)
class HistoryData:
    """Value of each finished trial, by number."""

    metric: str
    points: tuple[HistoryPoint, ...]
    best_number: int | None

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Trials of each kind that occurs."""
        return _counted([p.kind for p in self.points])

    @property
    def bottom(self) -> float:
        """Lower end of the drawn axis."""
        lowest = min((p.value for p in self.points if p.value is not None), default=0.0)
        return max(LOWEST_SHOWN, min(lowest, 0.0)) - 0.1

    @property
    def band_label(self) -> str:
        """What stands in the band below -1."""
        is_cut = any(p.value is not None and p.value < self.bottom for p in self.points)
        return f"penalised: no feasible probe{f' (cut at {LOWEST_SHOWN:g})' if is_cut else ''}"

    def drawn(self, point: HistoryPoint) -> float:
        """Height at which a point is drawn: trials without a value stand on the bottom."""
        return self.bottom if point.value is None else max(point.value, self.bottom)


def history_data(run: Run) -> HistoryData:
    """Value of each finished trial and the best feasible value up to it."""
    points, so_far = [], None
    for trial in run.trials:
        kind = kind_of(trial)
        if kind == "running":
            continue
        value = trial.value
        if value is not None and not math.isfinite(value):
            value = None
        if kind == "feasible" and value is not None:
            so_far = value if so_far is None else max(so_far, value)
        points.append(HistoryPoint(number=trial.number, kind=kind, value=value, best_so_far=so_far))
    first = best(run)
    return HistoryData(
        metric=run.spec.objective.metric,
        points=tuple(points),
        best_number=None if first is None else first.number,
    )


def history_matplotlib(data: HistoryData) -> Figure:
    """Draw the optimisation history."""
    figure, axes = _figure(width=8.0, height=4.2)
    line = [(p.number, p.best_so_far) for p in data.points if p.best_so_far is not None]
    if line:
        line.append((data.points[-1].number, line[-1][1]))
        axes.step(*_columns(line), where="post", color=BEST_COLOR, lw=1.8, label="best so far")
    for kind, count in data.n_by_kind.items():
        style = KINDS[kind]
        mine = [(p.number, data.drawn(p)) for p in data.points if p.kind == kind]
        axes.scatter(
            *_columns(mine),
            color=style.color,
            marker=style.marker,
            s=46,
            zorder=3,
            label=f"{style.label} ({count})",
        )
    for point in data.points:
        if point.number == data.best_number:
            axes.scatter(
                [point.number], [data.drawn(point)], **_ring(f"best: trial {point.number}")
            )
    axes.set_ylim(data.bottom - 0.08, TOP)
    axes.set_xlabel("trial number")
    axes.set_ylabel(f"value: {data.metric} (up is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if data.bottom < -1:
        axes.axhspan(data.bottom - 0.08, -1.0, color=LIMIT_COLOR, alpha=0.12, lw=0)
        axes.text(
            0.01,
            -1.03,
            data.band_label,
            va="top",
            fontsize=8,
            color="#5d6470",
            transform=axes.get_yaxis_transform(),
        )
    return _finished(figure, axes, is_empty=not data.points)


def history_plotly(data: HistoryData) -> Any:
    """Draw the optimisation history, interactive."""
    figure = go.Figure()
    line = [(p.number, p.best_so_far) for p in data.points if p.best_so_far is not None]
    if line:
        line.append((data.points[-1].number, line[-1][1]))
        xs, ys = _columns(line)
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"shape": "hv", "color": BEST_COLOR, "width": 2.5},
            name="best so far",
            hovertemplate="best so far %{y:.3f}<extra></extra>",
        )
    for kind, count in data.n_by_kind.items():
        mine = [p for p in data.points if p.kind == kind]
        figure.add_scatter(
            x=[p.number for p in mine],
            y=[data.drawn(p) for p in mine],
            customdata=["no finite value" if p.value is None else f"{p.value:.3f}" for p in mine],
            mode="markers",
            marker=_plotly_marker(KINDS[kind]),
            name=f"{KINDS[kind].label} ({count})",
            hovertemplate="trial %{x}: %{customdata}<extra></extra>",
        )
    for point in data.points:
        if point.number == data.best_number:
            _plotly_ring(figure, point.number, data.drawn(point), f"best: trial {point.number}")
    if data.bottom < -1:
        figure.add_hrect(
            y0=data.bottom - 0.08,
            y1=-1.0,
            fillcolor=LIMIT_COLOR,
            opacity=0.12,
            line_width=0,
            annotation_text=data.band_label,
            annotation_position="top left",
        )
    figure.update_xaxes(title="trial number", **_whole_ticks([p.number for p in data.points]))
    figure.update_yaxes(
        title=f"value: {data.metric} (up is better)", range=[data.bottom - 0.08, TOP]
    )
    return _plotly_finished(figure, height=400, is_empty=not data.points)


# --- (b) trade-off ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TradeoffPoint:
    """A finished trial at the probe that counts: objective and largest ``metric - at_most``."""

    number: int
    kind: Kind
    objective: float
    excess: float
    is_on_front: bool


@dataclass(frozen=True, kw_only=True)
class TradeoffData:
    """Objective against the largest constraint excess."""

    metric: str
    points: tuple[TradeoffPoint, ...]
    front: tuple[TradeoffPoint, ...]
    best_number: int | None
    n_hidden: int
    furthest: float

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Drawn trials of each kind that occurs."""
        return _counted([p.kind for p in self.points])

    def drawn(self, point: TradeoffPoint) -> float:
        """Where a point is drawn: wild ones stand at the right edge."""
        return min(point.excess, self.furthest)

    @property
    def notes(self) -> list[str]:
        """Legend lines for what the axes do not hold."""
        n_cut = sum(p.excess > self.furthest for p in self.points)
        found = [f"cut at the right edge ({n_cut})"] if n_cut else []
        return found + (
            [f"no finite objective, not shown ({self.n_hidden})"] if self.n_hidden else []
        )

    @property
    def span(self) -> tuple[float, float]:
        """Ends of the drawn axis; the limit is always inside."""
        places = [0.0, *(self.drawn(p) for p in self.points)]
        low, high = min(places), max(places)
        margin = max(0.08 * (high - low), 0.01)
        return low - margin, high + margin

    @property
    def bottom(self) -> float:
        """Lower end of the drawn axis."""
        return min(0.0, *(p.objective for p in self.points), 0.0) - 0.08


def tradeoff_data(run: Run) -> TradeoffData:
    """Objective and largest excess of each finished trial that has both as finite numbers."""
    metric = run.spec.objective.metric
    front = {t.number for t in pareto_front(run.trials)}
    finished = [t for t in run.trials if kind_of(t) != "running"]
    points = []
    for trial in finished:
        objective = number_or_nan(trial.metrics.get(metric))
        if not math.isfinite(objective) or not math.isfinite(excess(trial)):
            continue
        points.append(
            TradeoffPoint(
                number=trial.number,
                kind=kind_of(trial),
                objective=objective,
                excess=excess(trial),
                is_on_front=trial.number in front,
            )
        )
    first = best(run)
    return TradeoffData(
        metric=metric,
        points=tuple(points),
        front=tuple(sorted((p for p in points if p.is_on_front), key=lambda p: p.excess)),
        best_number=None if first is None else first.number,
        n_hidden=len(finished) - len(points),
        furthest=2 * max((c.at_most for c in run.spec.constraints), default=0.0) or 0.5,
    )


def tradeoff_matplotlib(data: TradeoffData) -> Figure:
    """Draw the trade-off."""
    figure, axes = _figure(width=8.0, height=4.8)
    low, high = data.span
    axes.axvspan(0.0, high, color=LIMIT_COLOR, alpha=0.10, lw=0)
    axes.axvline(0.0, color=LIMIT_COLOR, lw=1.4, ls="--", label="limit")
    if data.front:
        corner = [(p.excess, p.objective) for p in data.front]
        axes.step(
            *_columns(corner),
            where="post",
            color=BEST_COLOR,
            lw=1.6,
            label=f"Pareto front ({len(data.front)})",
        )
    for kind, count in data.n_by_kind.items():
        style = KINDS[kind]
        mine = [(data.drawn(p), p.objective) for p in data.points if p.kind == kind]
        axes.scatter(
            *_columns(mine),
            color=style.color,
            marker=style.marker,
            s=46,
            zorder=3,
            label=f"{style.label} ({count})",
        )
    for point in data.points:
        if point.number == data.best_number:
            axes.scatter(
                [data.drawn(point)], [point.objective], **_ring(f"best: trial {point.number}")
            )
    if len(data.front) <= LABELLED_FRONT:
        for point in data.front:
            axes.annotate(
                f"{point.number}",
                (point.excess, point.objective),
                (-7, 5),
                fontsize=9,
                textcoords="offset points",
                ha="right",
            )
    for note in data.notes:
        axes.plot([], [], ls="none", label=note)
    axes.set_xlim(low, high)
    axes.set_ylim(data.bottom, TOP)
    axes.set_xlabel(
        "largest constraint excess, metric - limit (left is better; shaded: above a limit)"
    )
    axes.set_ylabel(f"{data.metric} (up is better)")
    return _finished(figure, axes, is_empty=not data.points)


def tradeoff_plotly(data: TradeoffData) -> Any:
    """Draw the trade-off, interactive."""
    figure = go.Figure()
    low, high = data.span
    figure.add_vrect(x0=0.0, x1=high, fillcolor=LIMIT_COLOR, opacity=0.10, line_width=0)
    figure.add_vline(
        x=0.0,
        line={"color": LIMIT_COLOR, "dash": "dash", "width": 1.5},
        annotation_text="limit",
        annotation_position="bottom right",
        annotation_yshift=8,
    )
    if data.front:
        figure.add_scatter(
            x=[p.excess for p in data.front],
            y=[p.objective for p in data.front],
            mode="lines+text" if len(data.front) <= LABELLED_FRONT else "lines",
            text=[f"{p.number}\u00a0\u00a0\u00a0" for p in data.front],  # clear of the marker
            textposition="middle left",
            line={"shape": "hv", "color": BEST_COLOR, "width": 2},
            name=f"Pareto front ({len(data.front)})",
            hoverinfo="skip",
        )
    for kind, count in data.n_by_kind.items():
        mine = [p for p in data.points if p.kind == kind]
        figure.add_scatter(
            x=[data.drawn(p) for p in mine],
            y=[p.objective for p in mine],
            customdata=[[p.number, f"{p.excess:+.3f}"] for p in mine],
            mode="markers",
            marker=_plotly_marker(KINDS[kind]),
            name=f"{KINDS[kind].label} ({count})",
            hovertemplate=(
                f"trial %{{customdata[0]}}: {data.metric} %{{y:.3f}}, "
                "excess %{customdata[1]}<extra></extra>"
            ),
        )
    for point in data.points:
        if point.number == data.best_number:
            _plotly_ring(figure, data.drawn(point), point.objective, f"best: trial {point.number}")
    for note in data.notes:
        figure.add_scatter(
            x=[None], y=[None], mode="markers", marker={"color": "rgba(0,0,0,0)"}, name=note
        )
    figure.update_xaxes(
        title="largest constraint excess, metric - limit (left is better)", range=[low, high]
    )
    figure.update_yaxes(title=f"{data.metric} (up is better)", range=[data.bottom, TOP])
    return _plotly_finished(figure, height=440, is_empty=not data.points)


# --- (c) trial curves ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric over steps; ``limit`` is the constraint's, else the guard's; values above ``top`` are cut."""

    metric: str
    limit: float | None
    top: float

    @property
    def words(self) -> list[str]:
        """Axis title in lines: metric, unit if it has one, direction."""
        direction = "down is better" if self.metric.endswith("_drop") else "up is better"
        return [line for line in (self.metric, unit(self.metric), direction) if line]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Probes of a trial's latest attempt; values may be NaN.

    Attributes:
        number: The trial's.
        kind: What it came to.
        ending: Why it ended; ``None`` while it runs.
        is_best: Whether it is the best feasible trial.
        chosen_step: Step of the probe that counts.
        steps: Optimiser steps of the probes, the untouched model's 0 first.
        values: Metric name to one value for each step.
    """

    number: int
    kind: Kind
    ending: Ending | None
    is_best: bool
    chosen_step: int | None
    steps: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]

    def drawn(self, panel: Panel) -> list[float | None]:
        """Values as drawn: cut at the panel's top, ``None`` where there is no number."""
        return [_cut(v, panel) for v in self.values[panel.metric]]

    def end(self, panel: Panel) -> tuple[int, float] | None:
        """Where the stop marker stands: the last probe that can be drawn."""
        found = [
            (s, v) for s, v in zip(self.steps, self.drawn(panel), strict=True) if v is not None
        ]
        return found[-1] if found else None


@dataclass(frozen=True, kw_only=True)
class CurvesData:
    """Metrics of all trials against the optimiser step."""

    panels: tuple[Panel, ...]
    curves: tuple[Curve, ...]

    @property
    def n_by_kind(self) -> dict[Kind, int]:
        """Drawn trials of each kind that occurs."""
        return _counted([c.kind for c in self.curves])

    @property
    def n_by_ending(self) -> dict[Ending, int]:
        """Drawn trials of each ending that occurs."""
        found = Counter(c.ending for c in self.curves)
        return {ending: found[ending] for ending in ENDINGS if found[ending]}


def curves_data(run: Run) -> CurvesData:
    """Objective and watched drops at each probe of each trial that has a history."""
    limits: dict[str, float] = {c.metric: c.at_most for c in run.spec.constraints}
    guard = run.spec.pruning.retain
    watched = dict.fromkeys([*limits, *(guard.metrics if guard else ())])
    hard = guard.hard_limit if guard else 1.0
    panels = [Panel(metric=run.spec.objective.metric, limit=None, top=1.0)]
    panels += [
        Panel(metric=m, limit=limits.get(m, guard.limit if guard else None), top=1.2 * hard)
        for m in watched
    ]
    first = best(run)
    curves = []
    for trial in run.trials:
        lines = run.history(trial.number)
        if not lines:
            continue
        metrics = [line.get("metrics") or {} for line in lines]
        is_best = first is not None and trial.number == first.number
        curves.append(
            Curve(
                number=trial.number,
                kind=kind_of(trial),
                ending=None if kind_of(trial) == "running" else ending_of(trial),
                is_best=is_best,
                chosen_step=trial.step,
                steps=tuple(int(line.get("step", i)) for i, line in enumerate(lines)),
                values={
                    p.metric: tuple(number_or_nan(m.get(p.metric)) for m in metrics) for p in panels
                },
            )
        )
    return CurvesData(panels=tuple(panels), curves=tuple(curves))


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
            if curve.is_best and curve.chosen_step in curve.steps:
                at = curve.steps.index(curve.chosen_step)
                axes.scatter([curve.steps[at]], [values[at]], **_ring(""))
        _tidy(axes)
        axes.set_xlabel("optimiser step")
        name, *rest = panel.words
        axes.set_ylabel(f"{name}\n{', '.join(rest)}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not data.curves:
            _say_empty(axes)
    handles: list[Line2D] = []
    for kind, count in data.n_by_kind.items():
        handles.append(
            Line2D([], [], color=KINDS[kind].color, label=f"{KINDS[kind].label} ({count})")
        )
    for curve in data.curves:
        if curve.is_best:
            label = f"best: trial {curve.number}, ring at step {curve.chosen_step}"
            handles.append(Line2D([], [], color=BEST_COLOR, lw=2.6, label=label))
    if any(p.limit is not None for p in data.panels):
        handles.append(Line2D([], [], color=LIMIT_COLOR, ls="--", label="limit"))
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
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
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
                marker=_plotly_marker(ENDINGS[ending], size=8),
                name=f"ended: {ENDINGS[ending].label} ({count})",
                legendgroup=f"ended {ending}",
                showlegend=row == 1,
                hovertemplate=f"trial %{{customdata}}: {ENDINGS[ending].label}<extra></extra>",
                row=row,
                col=1,
            )
        for curve in data.curves:
            if curve.is_best and curve.chosen_step in curve.steps:
                at = curve.steps.index(curve.chosen_step)
                _plotly_ring(
                    figure,
                    curve.steps[at],
                    curve.drawn(panel)[at],
                    f"its value is taken at step {curve.chosen_step}",
                    row=row,
                    col=1,
                    showlegend=row == 1,
                    legendgroup="chosen",
                )
        if panel.limit is not None and data.curves:  # not on a panel without a trace
            figure.add_hline(
                y=panel.limit,
                row=row,
                col=1,
                line={"color": LIMIT_COLOR, "dash": "dash", "width": 1.5},
                annotation_text=f"limit {panel.limit:g}",
                annotation_position="top left",
            )
        figure.update_yaxes(title="<br>".join(panel.words), row=row, col=1)
    figure.update_xaxes(**_whole_ticks([s for c in data.curves for s in c.steps]))
    figure.update_xaxes(title="optimiser step", row=n, col=1)
    return _plotly_finished(figure, height=120 + 240 * n, is_empty=not data.curves)


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


# --- (d) why trials ended -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepsBar:
    """Optimiser steps of a finished trial: made, and not made because it was stopped early."""

    number: int
    ending: Ending
    made: int
    saved: int


@dataclass(frozen=True, kw_only=True)
class StepsData:
    """Steps made and saved by trial."""

    planned: int
    bars: tuple[StepsBar, ...]

    @property
    def n_by_ending(self) -> dict[Ending, int]:
        """Trials of each ending that occurs."""
        found = Counter(b.ending for b in self.bars)
        return {ending: found[ending] for ending in ENDINGS if found[ending]}

    def saved_by(self, ending: Ending) -> int:
        """Steps saved by the trials of one ending."""
        return sum(b.saved for b in self.bars if b.ending == ending)


def steps_data(run: Run) -> StepsData:
    """Steps of each finished trial; a trial that broke has saved nothing."""
    planned = run.spec.budget.max_steps
    bars = []
    for trial in run.trials:
        kind = kind_of(trial)
        if kind == "running":
            continue
        made = trial.steps if trial.steps is not None else (trial.step or 0)
        saved = 0 if kind == "failed" else max(0, planned - made)
        bars.append(StepsBar(number=trial.number, ending=ending_of(trial), made=made, saved=saved))
    return StepsData(planned=planned, bars=tuple(bars))


def steps_matplotlib(data: StepsData) -> Figure:
    """Draw steps made (full) and saved (hatched), one bar for each trial."""
    figure, axes = _figure(width=8.0, height=min(14.0, max(2.8, 1.6 + 0.24 * len(data.bars))))
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
    return _finished(figure, axes, is_empty=not data.bars, handles=handles)


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
        **_whole_ticks([0, data.planned]),
    )
    figure.update_yaxes(
        title="trial number",
        autorange="reversed",
        **_whole_ticks([b.number for b in data.bars], at_most=45),
    )
    height = min(1000, max(280, 170 + 20 * len(data.bars)))
    return _plotly_finished(figure, height=height, is_empty=not data.bars)


def _steps_label(data: StepsData, ending: Ending, count: int) -> str:
    trials = f"{count} trial{'' if count == 1 else 's'}"
    saved = data.saved_by(ending)
    return f"{ENDINGS[ending].label} ({trials}{f', {saved} steps saved' if saved else ''})"


# --- shared by the figures ----------------------------------------------------------------------


def plotly_js() -> str:
    """The plotly library, to stand once inside a ``<script>`` element."""
    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script")


def _counted(kinds: Sequence[Kind]) -> dict[Kind, int]:
    found = Counter(kinds)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def _cut(value: float, panel: Panel) -> float | None:
    if math.isnan(value) or value == -math.inf:
        return None
    return min(value, panel.top)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _figure(*, width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _tidy(axes: Axes) -> None:
    axes.grid(visible=True, color="#8a8f98", alpha=0.25, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _say_empty(axes: Axes) -> None:
    axes.text(
        0.5,
        0.5,
        "no finished trial",
        transform=axes.transAxes,
        ha="center",
        va="center",
        color="#5d6470",
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _finished(
    figure: Figure, axes: Axes, *, is_empty: bool, handles: list[Patch] | None = None
) -> Figure:
    _tidy(axes)
    if is_empty:
        _say_empty(axes)
        return figure
    found = handles or axes.get_legend_handles_labels()[0]
    figure.legend(handles=found, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _ring(label: str) -> dict[str, Any]:
    return {
        "s": 150,
        "facecolors": "none",
        "edgecolors": BEST_COLOR,
        "linewidths": 2.0,
        "zorder": 6,
        "label": label,
    }


def _plotly_marker(style: Style, *, size: int = 10) -> dict[str, Any]:
    return {"color": style.color, "symbol": style.symbol, "size": size}


def _plotly_ring(figure: Any, x: float, y: float | None, label: str, **where: Any) -> None:
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={"color": BEST_COLOR, "symbol": "circle-open", "size": 18, "line": {"width": 3}},
        name=label,
        hoverinfo="skip",
        **where,
    )


def _whole_ticks(numbers: Sequence[int], *, at_most: int = 20) -> dict[str, Any]:
    """A tick at every whole number while there are few; plotly would put some between them."""
    few = bool(numbers) and max(numbers) - min(numbers) <= at_most
    return {"dtick": 1} if few else {}


def _plotly_finished(figure: Any, *, height: int, is_empty: bool) -> Any:
    """Common layout; ground and text colour are the page's."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 75, "r": 45, "t": 20, "b": 60},
        modebar={"orientation": "v"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="closest",
    )
    title = {"font": {"size": 13}, "standoff": 10}
    figure.update_xaxes(zeroline=False, automargin=True, title=title)
    figure.update_yaxes(zeroline=False, automargin=True, title=title)
    if is_empty:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(
            text="no finished trial", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False
        )
    return figure
