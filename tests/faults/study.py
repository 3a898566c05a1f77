"""The sweeps that faults meet, and the analytic trial in them: plain numbers from parameters, nothing trains."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from analytic_study import closure, spec_of
from small_sweep import WHY

from core.config import TrialConfig
from core.metrics.intervals import Sums
from core.metrics.probes import MEASURED, Level, degradation, level
from tuning.config import SweepSpec

SLOTS = 2
"""Trials at the same time."""
_UNTOUCHED = {"forget": 1.0, "retain": 2.0, "general": 2.5, "target": 3.0, "unseen": 2.6}
"""Cross-entropy of each set under the untouched model, in nats per token."""
_DAMAGING_RATE = 3e-3
_RATES = [1e-5, 1e-4, 3e-4, 1e-3, 5e-3, 1e-2]
_GRID = {
    "optimizer.learning_rate": {"categorical": _RATES} | WHY,
    "adapter.rank": {"categorical": [4, 8, 16, 32]} | WHY,
}


def sweep(*, trials: int = 24, steps: int = 5, **changes: Any) -> SweepSpec:
    """A grid of 24 points, of which the guard stops a third; the sampler is deterministic, whatever breaks."""
    values: dict[str, Any] = {
        "space": _GRID,
        "sampler": {"name": "grid", "seed": 4},
        "budget": {"trials": trials, "max_steps": steps, "finalists": 2, "skip_probes": False},
        "pruning": {
            "ranking": "none",
            "retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0},
        },
    }
    return spec_of(**(values | changes))


def before() -> dict[str, Sums]:
    """Row sums under the untouched model: one row of a thousand tokens for each set."""
    return {name: np.array([[nll * 1000, 500.0, 1000.0]]) for name, nll in _UNTOUCHED.items()}


def measured(trial: TrialConfig, step: int) -> dict[str, float]:
    """Metrics after ``step`` optimiser steps: the forget set moves to its target, and large rates damage.

    The largest rate does from the first step on, so that its trials are pruned.
    """
    rate, rank = trial.optimizer.learning_rate, trial.adapter.rank
    reached = closure({"optimizer.learning_rate": rate, "adapter.rank": rank}) * step / 6
    damage = 0.9 if rate > _DAMAGING_RATE * min(step, 2) else 0.01 * step
    levels = {
        "forget": Level(nll=_UNTOUCHED["forget"] + 2.0 * reached, accuracy=0.5),
        "retain": Level(nll=_UNTOUCHED["retain"] + damage, accuracy=0.5),
        "general": Level(nll=_UNTOUCHED["general"] + damage / 2, accuracy=0.5),
    }
    return degradation(levels, {name: level(sums) for name, sums in before().items()})


def reported(trial: TrialConfig) -> dict[str, float]:
    """What a finalist measures on the reporting split."""
    return {name: value for name, value in measured(trial, 1).items() if name.startswith(MEASURED)}


def adapter_bytes(trial: TrialConfig, step: int) -> bytes:
    """The adapter after ``step`` steps: another for each point of the grid and step, the same for each attempt."""
    made_of = f"{trial.optimizer.learning_rate} {trial.adapter.rank} {step}"
    return hashlib.sha256(made_of.encode()).digest() * 64
