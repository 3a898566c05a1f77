"""Statistics of effort: compute against retraining, and steps to the target."""

import math
from collections.abc import Mapping, Sequence

from tuning.guidelines.evidence import Evidence, of_unit, units
from tuning.guidelines.findings import Findings, PerUnit
from tuning.guidelines.trajectories import (
    RATE,
    best_feasible,
    best_score,
    step_at,
    values_of,
    with_value,
)
from tuning.plots.guideline import Line, LinesData


def cost_ratio(evidence: Evidence, *, chosen: str, pretraining_tokens: float) -> Findings:
    r"""Decimal logarithm of the compute of pretraining over that of the chosen trial.

    Both are taken as :math:`6 N T` floating point operations for :math:`N` parameters and :math:`T` tokens, forward
    and backward, so that :math:`N` falls out and a ratio of tokens is left. The trial's tokens are an upper bound:
    every row of a step as long as it may be; an adapter's backward pass, which is cheaper, counts in full. Probes
    count as forward passes in neither. Beside it: the same with all trials of the sweep, as tuning costs.

    Args:
        evidence: A sweep by name.
        chosen: The sweep whose best trial counts.
        pretraining_tokens: Tokens that the model was pretrained on.
    """
    one, whole, steps = {}, {}, {}
    for unit in units(evidence):
        trials = of_unit(evidence[chosen], unit)
        best = best_feasible(trials)
        if best is None:
            one[unit] = steps[unit] = math.nan
        else:
            last = max(best.readings, key=lambda r: r.score if best.is_feasible(r) else -math.inf)
            one[unit] = math.log10(pretraining_tokens / (last.step * best.step_tokens))
            steps[unit] = float(last.step)
        tokens = sum(t.readings[-1].step * t.step_tokens for t in trials)
        whole[unit] = math.log10(pretraining_tokens / tokens)
    return Findings(
        effects={"chosen trial": one},
        details={"steps of the chosen trial": steps, "all trials of a seed, log10": whole},
    )


def speed_up(
    evidence: Evidence, *, favoured: str, controls: Sequence[str], level: float, most_steps: float
) -> Findings:
    """Binary logarithm of the steps of each control over those of the favoured sweep, to the same score.

    Steps are the fewest over the trials of a sweep, within the limit of damage, so that each has a rate of its
    own; a sweep that does not get there has ``most_steps``.
    """
    steps = {
        name: {
            unit: step_at(of_unit(trials, unit), level, cap=most_steps) for unit in units(evidence)
        }
        for name, trials in evidence.items()
    }
    return Findings(
        effects={
            f"over {name}": {u: math.log2(steps[name][u] / steps[favoured][u]) for u in steps[name]}
            for name in controls
        },
        details={f"steps of {name}": found for name, found in steps.items()},
        figures=[_steps_figure(evidence, level, most_steps)],
        remarks=capped_steps(steps, cap=most_steps),
    )


def capped_steps(steps: Mapping[str, PerUnit], *, cap: float) -> list[str]:
    """Which sweeps did not get there within the limit of damage, so that a number of steps stands for it."""
    return [
        f"{name}: in {n} of {len(found)} units no trial got there; {cap:g} steps are taken."
        for name, found in steps.items()
        if (n := sum(value >= cap for value in found.values()))
    ]


def _steps_figure(evidence: Evidence, level: float, most_steps: float) -> LinesData:
    """Steps to the level by rate; rates that never get there are left out."""
    lines = []
    for name, trials in evidence.items():
        points = []
        for rate in values_of(trials, RATE):
            at_rate = with_value(trials, RATE, rate)
            fewest = [step_at([t], level, cap=most_steps) for t in at_rate if best_score(t) > 0.0]
            got_there = [s for s in fewest if s < most_steps]
            if got_there:
                points.append((rate, sum(got_there) / len(got_there)))
        lines.append(Line(label=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points)))
    return LinesData(
        title=f"Steps to a score of {level:g} within the limit, mean over the seeds that get there",
        x_label="learning rate",
        y_label="optimiser steps",
        lines=tuple(lines),
        is_log=True,
    )
