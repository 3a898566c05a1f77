"""Statistics of damage to retained text at equal forgetting, and of what happens after the target is reached."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tuning.guidelines.evidence import Evidence, Observed, judged_by, of_unit, units
from tuning.guidelines.findings import Findings, PerUnit
from tuning.guidelines.statistics.effort import capped_steps
from tuning.guidelines.trajectories import (
    RATE,
    best_feasible,
    crossing,
    damage_at,
    step_at,
    values_of,
    with_value,
)
from tuning.plots.guideline import Line, LinesData


def damage_difference(
    evidence: Evidence,
    *,
    pairs: Sequence[Sequence[str]],
    level: float,
    cap: float,
    damage: str | None = None,
) -> Findings:
    """How much more the first sweep of each pair damages than the second, where both have forgotten equally much.

    The damage of a sweep is the least over its trials, so that each has a rate of its own; a sweep that never
    forgets so much has the damage ``cap``.

    Args:
        evidence: Sweeps by name.
        pairs: Pairs of names, the worse one by the claim first; the mean over pairs decides.
        level: The score at which damages are compared.
        cap: Damage from which on it is not told apart.
        damage: The metric that is the damage; the largest limited one if absent.
    """
    if damage is not None:
        evidence = judged_by(evidence, damage)
    damages = {
        name: _per_unit(trials, lambda found: damage_at(found, level, cap=cap))
        for name, trials in evidence.items()
    }
    every = units(evidence)
    by_pair = {
        f"{worse} - {better}": {u: damages[worse][u] - damages[better][u] for u in every}
        for worse, better in pairs
    }
    return Findings(
        effects={
            "difference": {u: float(np.mean([d[u] for d in by_pair.values()])) for u in every}
        },
        details=by_pair | {f"damage of {name}": found for name, found in damages.items()},
        figures=[_trade_off(evidence, level, damage)],
        remarks=_capped(damages, level=level, cap=cap),
    )


def low_rank_damage(
    evidence: Evidence, *, low_rank: str, full: str, knob: str, level: float, cap: float
) -> Findings:
    """How much more adapters of each rank damage than training all weights, at equal forgetting; mean over ranks."""
    of_full = _per_unit(evidence[full], lambda found: damage_at(found, level, cap=cap))
    by_rank: dict[str, PerUnit] = {}
    groups: dict[str, Sequence[Observed]] = {full: evidence[full]}
    for rank in values_of(evidence[low_rank], knob):
        name = f"{low_rank}, rank {rank:g}"
        groups[name] = with_value(evidence[low_rank], knob, rank)
        by_rank[name] = _per_unit(groups[name], lambda found: damage_at(found, level, cap=cap))
    others = {
        name: _per_unit(trials, lambda found: damage_at(found, level, cap=cap))
        for name, trials in evidence.items()
        if name not in (low_rank, full)
    }
    damages = by_rank | {full: of_full} | others
    return Findings(
        effects={
            "difference": {
                u: float(np.mean([d[u] for d in by_rank.values()])) - of_full[u] for u in of_full
            }
        },
        details={f"damage of {name}": damage for name, damage in damages.items()},
        figures=[_trade_off(groups, level)],
        remarks=_capped(damages, level=level, cap=cap),
    )


def after_the_target(evidence: Evidence) -> Findings:
    """What training past the target costs: score lost and damage done between the crossing and the end.

    A trial crosses where its forget cross-entropy first reaches the target's. The mean is over the methods and
    their trials that cross.
    """
    lost: dict[str, float] = {}
    done: dict[str, float] = {}
    step: dict[str, dict[str, float]] = {name: {} for name in evidence}
    for unit in units(evidence):
        losses, damages = [], []
        for name, trials in evidence.items():
            crossed = [(t, i) for t in of_unit(trials, unit) if (i := _crossed_at(t)) is not None]
            step[name][unit] = min((t.readings[i].step for t, i in crossed), default=math.nan)
            for trial, i in crossed:
                best = max(r.score for r in trial.readings[max(0, i - 1) : i + 1])
                losses.append(best - trial.readings[-1].score)
                damages.append(trial.readings[-1].damage - trial.readings[i].damage)
        lost[unit] = float(np.mean(losses)) if losses else math.nan
        done[unit] = float(np.mean(damages)) if damages else math.nan
    return Findings(
        effects={"score lost": lost, "damage done": done},
        details={f"first crossing of {name}, step": found for name, found in step.items()},
        figures=[_courses(evidence)],
        remarks=[
            f"{name}: {sum(_crossed_at(t) is not None for t in trials)} of {len(trials)} trials cross, and go on after."
            for name, trials in evidence.items()
        ],
    )


def slow_but_gentle(
    evidence: Evidence, *, slow: str, level: float, cap: float, most_steps: float
) -> Findings:
    """Whether one sweep takes more steps than each other, and damages less, at equal forgetting.

    Returns:
        ``steps``: binary logarithm of its steps over the most that another takes; ``damage``: the least damage of
        another minus its own. Steps count within the limit of damage, rates are each sweep's own.
    """
    steps = {
        name: _per_unit(trials, lambda found: step_at(found, level, cap=most_steps))
        for name, trials in evidence.items()
    }
    damages = {
        name: _per_unit(trials, lambda found: damage_at(found, level, cap=cap))
        for name, trials in evidence.items()
    }
    others = [name for name in evidence if name != slow]
    every = units(evidence)
    return Findings(
        effects={
            "steps": {
                u: math.log2(steps[slow][u] / max(steps[name][u] for name in others)) for u in every
            },
            "damage": {
                u: min(damages[name][u] for name in others) - damages[slow][u] for u in every
            },
        },
        details={f"steps of {name}": found for name, found in steps.items()}
        | {f"damage of {name}": found for name, found in damages.items()},
        figures=[_trade_off(evidence, level)],
        remarks=_capped(damages, level=level, cap=cap) + capped_steps(steps, cap=most_steps),
    )


def _crossed_at(trial: Observed) -> int | None:
    """Index of the first reading at or past the target; the last reading is none, since nothing follows it."""
    for i, reading in enumerate(trial.readings[:-1]):
        if reading.metrics.get("forget_nll", -math.inf) >= trial.target_nll:
            return i
    return None


def _per_unit(
    trials: Sequence[Observed], of: Callable[[list[Observed]], float]
) -> dict[str, float]:
    return {unit: of(of_unit(trials, unit)) for unit in units({"": trials})}


def _capped(damages: Mapping[str, PerUnit], *, level: float, cap: float) -> list[str]:
    """Which sweeps never forgot so much, or only beyond the cap."""
    found = []
    for name, by_unit in damages.items():
        n = sum(value >= cap for value in by_unit.values())
        if n:
            found.append(
                f"{name}: in {n} of {len(by_unit)} units no trial reached the score {level:g} with a damage "
                f"below {cap:g}; {cap:g} is taken."
            )
    return found


def _trade_off(evidence: Evidence, level: float, damage: str | None = None) -> LinesData:
    """Least damage at which each score is reached, of all units together; ``damage`` is its metric, if it is one."""
    levels = [round(0.1 * i, 1) for i in range(1, 10)]
    lines = []
    for name, trials in evidence.items():
        points = []
        for at in levels:
            damages = [c.damage for t in trials if (c := crossing(t, at)) is not None]
            if damages:
                points.append((at, min(damages)))
        lines.append(Line(label=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points)))
    return LinesData(
        title=f"Least damage at which a score is reached; compared at {level:g}",
        x_label="score (1 = the forget set looks unseen)",
        y_label=f"damage ({damage or 'largest limited metric'})",
        lines=tuple(lines),
        level=0.0,
        level_label="no damage",
    )


def _courses(evidence: Evidence) -> LinesData:
    """Course of each sweep's best trial."""
    lines = []
    for name, trials in evidence.items():
        best = best_feasible(trials)
        if best is not None:
            rate = best.params.get(RATE)
            label = name if rate is None else f"{name}, rate {rate:.2g}"
            readings = best.readings
            lines.append(
                Line(
                    label=label,
                    x=(0.0, *(float(r.step) for r in readings)),
                    y=(0.0, *(r.score for r in readings)),
                )
            )
    return LinesData(
        title="Score along the best trial of each method",
        x_label="optimiser step",
        y_label="score (1 = the forget set looks unseen)",
        lines=tuple(lines),
        level=1.0,
        level_label="target",
    )
