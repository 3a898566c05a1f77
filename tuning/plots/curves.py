"""Curves of a run: objective and watched metrics of each trial against the optimiser step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.config import metric_facts
from core.measuring.selection import worst_value
from tuning.plots.reading import ending_of, kind_of, n_by_ending, n_by_kind, number_or_nan
from tuning.plots.style import Ending, Kind
from tuning.ranking import best
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric over steps; ``limit`` is the constraint's, else the guard's; values above ``top`` are cut."""

    metric: str
    limit: float | None
    top: float

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
    first = best(run.trials)
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
                landed=trial.metrics if "landing_factor" in trial.metrics else {},
            )
        )
    return CurvesData(panels=tuple(panels), curves=tuple(curves))


def _cut(value: float, panel: Panel) -> float | None:
    if math.isnan(value) or value == -math.inf:
        return None
    return min(value, panel.top)
