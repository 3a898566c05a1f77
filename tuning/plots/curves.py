"""Curves of a run: metrics of each trial against the optimiser step, those that decide and the levels of the sets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.config import metric_facts
from core.measuring.selection import worst_value
from tuning.damage import whole_history
from tuning.plots.reading import ending_of, kind_of, n_by_ending, n_by_kind, number_or_nan
from tuning.plots.style import Ending, Kind
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric over steps, with a line across; values above ``top`` are cut.

    Attributes:
        metric: The metric.
        limit: Where the line lies: the constraint's limit, else the guard's; of a level its target or origin.
        top: Upper end of what is drawn.
        line: What the line is.
    """

    metric: str
    limit: float | None
    top: float
    line: str = "limit"

    @property
    def words(self) -> list[str]:
        """Axis title in lines: metric, unit if it has one, direction."""
        facts = metric_facts(self.metric)
        return [line for line in (self.metric, facts.unit, facts.direction) if line]


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
        landed: Metric name to value where the probe that counts was scaled back onto the target; else empty.
    """

    number: int
    kind: Kind
    ending: Ending | None
    is_best: bool
    chosen_step: int | None
    steps: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    landed: Mapping[str, float] = field(default_factory=dict)

    @property
    def ring(self) -> str:
        """What the ring around the probe that counts says: its step, and why it may stand off the curve."""
        if not self.landed:
            return f"its value is taken at step {self.chosen_step}"
        factor = self.landed["landing_factor"]
        return f"its value: step {self.chosen_step}, scaled back ({factor:.2f})"

    def fall(self, panel: Panel) -> tuple[int, float, float] | None:
        """Step, and height on the curve and at the ring, where the probe that counts was scaled back; else ``None``."""
        chosen = self.chosen(panel)
        if chosen is None or panel.metric not in self.landed:
            return None
        trained, value = self.drawn(panel)[self.steps.index(chosen[0])], chosen[1]
        return None if trained is None or value is None else (chosen[0], trained, value)

    def chosen(self, panel: Panel) -> tuple[int, float | None] | None:
        """Where the probe that counts stands; ``None`` if no probe of the curve does."""
        if self.chosen_step not in self.steps:
            return None
        if panel.metric in self.landed:
            return self.chosen_step, _cut(self.landed[panel.metric], panel)
        return self.chosen_step, self.drawn(panel)[self.steps.index(self.chosen_step)]

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
        return n_by_kind(c.kind for c in self.curves)

    @property
    def n_by_ending(self) -> dict[Ending, int]:
        """Drawn trials of each ending that occurs."""
        return n_by_ending(c.ending for c in self.curves)


def curves_data(run: Run) -> CurvesData:
    """Objective and watched drops at each probe of each trial that has a history."""
    selection = run.spec.trial_selection()
    limits: dict[str, float] = {c.metric: c.limit for c in selection.constraints}
    guard = selection.retain_guard
    top = 1.2 * (guard.hard_limit if guard else 1.0)
    best_or_worst = worst_value(selection) if selection.is_minimized else 1.0
    panels = [Panel(metric=selection.metric, limit=None, top=best_or_worst)]
    for metric in selection.limited_metrics:
        watched = guard.bound(metric, guard.limit) if guard else None
        is_utility = metric_facts(metric).better == "up"  # of which 1 is the untouched model's
        panels.append(
            Panel(
                metric=metric,
                limit=limits.get(metric, watched),
                top=max(1.2, top) if is_utility else top,
            )
        )
    return _curves(run, panels)


def levels_data(run: Run) -> CurvesData:
    """Cross-entropy of forget, retain and general set at each probe, with the target and where each set began."""
    guard = run.spec.trial_selection().retain_guard
    room = 1.2 * (guard.hard_limit if guard else 1.0)
    before = _before(run)
    began, target = before.get("forget_nll"), before.get("target_nll")
    top = math.inf if began is None or target is None else target + abs(target - began)
    panels = [Panel(metric="forget_nll", limit=target, top=top, line="target of forgetting")]
    for metric in ("retain_nll", "general_nll"):
        level = before.get(metric)
        top = math.inf if level is None else level + room
        panels.append(Panel(metric=metric, limit=level, top=top, line="before unlearning"))
    return _curves(run, panels)


def _before(run: Run) -> Mapping[str, float]:
    """Levels before unlearning: as the run noted them, else as a trial's first line has them."""
    if run.facts.baseline:
        return run.facts.baseline
    for trial in run.trials:
        for line in whole_history(run, trial.number)[:1]:
            found = {m: number_or_nan(v) for m, v in (line.get("metrics") or {}).items()}
            return found | {"target_nll": number_or_nan(line.get("target_nll"))}
    return {}


def _curves(run: Run, panels: Sequence[Panel]) -> CurvesData:
    first = run.best
    curves = []
    for trial in run.trials:
        lines = whole_history(run, trial.number)
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
                landed=trial.metrics if "landing_factor" in trial.metrics else {},
            )
        )
    return CurvesData(panels=tuple(panels), curves=tuple(curves))


def _cut(value: float, panel: Panel) -> float | None:
    if math.isnan(value) or value == -math.inf:
        return None
    return min(value, panel.top)
