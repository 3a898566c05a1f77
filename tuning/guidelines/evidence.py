"""What a guideline is judged by: trials as plain records, whether ours or published."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.config import ConstraintConfig
from tuning.config import Choice, SweepSpec
from tuning.run import Run

MOST_DAMAGE = 10.0
"""Damage of a model that diverged."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A probe of a trial.

    Attributes:
        step: Optimiser step, or epoch of a published trial.
        score: What more is better of: the objective; -1 where the model diverged.
        damage: Largest of the limited metrics, in their unit; :data:`MOST_DAMAGE` where the model diverged.
        metrics: All metrics by name.
    """

    step: int
    score: float
    damage: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A finished trial.

    Attributes:
        unit: What was repeated independently: ``seed 0``, or a method or task of published trials.
        params: Searched fields and their values.
        readings: Its probes, in order; the untouched model is none of them.
        limit: Largest damage of a feasible reading.
        step_tokens: Upper bound of the tokens that an optimiser step reads; 0 if it is not known.
        target_nll: Forget cross-entropy of the target, nats per token; NaN if it is not known.
    """

    unit: str
    params: Mapping[str, Choice]
    readings: tuple[Reading, ...]
    limit: float
    step_tokens: float = 0.0
    target_nll: float = math.nan

    def is_feasible(self, reading: Reading) -> bool:
        """Whether a reading keeps the limit."""
        return reading.damage <= self.limit


Evidence = Mapping[str, Sequence[Observed]]
"""Trials by the name of their sweep."""


def units(evidence: Evidence) -> list[str]:
    """Units of all sweeps, each once, in order of appearance."""
    return list(dict.fromkeys(t.unit for trials in evidence.values() for t in trials))


def of_unit(trials: Sequence[Observed], unit: str) -> list[Observed]:
    """Trials of one unit."""
    return [t for t in trials if t.unit == unit]


def judged_by(evidence: Evidence, damage: str) -> Evidence:
    """The same trials with one metric as their damage; where the model diverged, it stays as it is."""
    return {
        name: [
            replace(
                trial,
                readings=tuple(
                    replace(r, damage=r.metrics[damage]) if r.damage < MOST_DAMAGE else r
                    for r in trial.readings
                ),
            )
            for trial in trials
        ]
        for name, trials in evidence.items()
    }


def from_run(run: Run) -> list[Observed]:
    """The finished trials of a run that have probes."""
    finished = [t for t in run.trials if t.state in ("COMPLETE", "PRUNED")]
    found = [observed(run.spec, t.params, run.history(t.number)) for t in finished]
    return [trial for trial in found if trial is not None]


def observed(
    spec: SweepSpec, params: Mapping[str, Choice], history: Sequence[Mapping[str, Any]]
) -> Observed | None:
    """A trial of a sweep, from the lines of its history; ``None`` if it has no probe. Its unit is the seed."""
    before, *probes = history or [{}]
    if not probes:
        return None
    selection, data = spec.trial_selection(), spec.trial_data()
    sources = (data.forget, data.retain, data.general)
    rows = int(params.get("batch.global_batch_size", spec.batch.get("global_batch_size", 8)))
    n_roles = 1 if spec.method.get("retain_loss") == "none" else 2
    limits = selection.constraints
    return Observed(
        unit=f"seed {params.get('seed', spec.seed)}",
        params=dict(params),
        readings=tuple(
            _reading(p["step"], p["metrics"], objective=selection.metric, limits=limits)
            for p in probes
        ),
        limit=max((c.tolerance for c in limits), default=math.inf),
        step_tokens=float(n_roles * rows * max(source.max_tokens for source in sources)),
        target_nll=float(before.get("target_nll", math.nan)),
    )


def _reading(
    step: int,
    metrics: Mapping[str, float],
    *,
    objective: str,
    limits: Sequence[ConstraintConfig],
) -> Reading:
    score = metrics.get(objective, math.nan)
    values = [
        1.0 - metrics[c.metric] if c.is_floor else metrics[c.metric]
        for c in limits
        if c.metric in metrics
    ]
    is_finite = math.isfinite(score) and all(map(math.isfinite, values))
    return Reading(
        step=step,
        score=score if is_finite else -1.0,
        damage=min(MOST_DAMAGE, max(values, default=0.0)) if is_finite else MOST_DAMAGE,
        metrics=dict(metrics),
    )
