"""A study whose trials have an analytic objective with a known optimum, so that nothing trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from small_sweep import BASE, WHY

from core.measuring.selection import Probe, StoppedBy
from tuning.config import Choice, SweepSpec
from tuning.files import parse_sweep
from tuning.ledger import Ledger
from tuning.objective import Outcome, conclude
from tuning.space import bind, corner_proposals

RATE = {"float": {"low": 1e-5, "high": 1e-2, "log": True}} | WHY
SPACE: Mapping[str, Any] = {
    "optimizer.learning_rate": RATE,
    "adapter.rank": {"categorical": [4, 8, 16]} | WHY,
}
GRID: Mapping[str, Any] = {
    "optimizer.weight_decay": {"float": {"low": 0.1, "high": 0.3, "step": 0.1}} | WHY,
    "adapter.rank": {"int": {"low": 4, "high": 8, "step": 4}} | WHY,
}
Params = Mapping[str, Choice]


def spec_of(**changes: Any) -> SweepSpec:
    """A small sweep with some top-level keys replaced."""
    values: dict[str, Any] = dict(BASE) | {
        "space": SPACE,
        "budget": {"trials": 8, "max_steps": 3},
        "sampler": {"name": "random", "seed": 5},
        "pruning": {"retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0}},
    }
    if "space" in changes and "optimizer.learning_rate" not in changes["space"]:
        values["optimizer"] = {"learning_rate": 1e-3}
    return parse_sweep(values | changes, where="test")


def probe(
    step: int, closure: float, drop: float = 0.0, stopped_by: StoppedBy | None = None
) -> Probe:
    """What one probe says: closure, retain drop, and whether the trial ends here."""
    metrics = {
        "forget_closure": closure,
        "retain_drop": drop,
        "general_drop": 0.0,
        "forget_nll": 1.0 + closure,
    }
    return Probe(step=step, metrics=metrics, seconds=float(step), stopped_by=stopped_by)


def outcome_of(spec: SweepSpec, probes: Sequence[Probe], verdict: Any = None) -> Outcome:
    """How a trial with these probes ended."""
    selection = bind(spec, next(corner_proposals(spec)), where="test").selection
    return conclude(probes, selection, verdict)


def closure(params: Params) -> float:
    """1 at a learning rate of 1e-3 and rank 16; falls on both sides."""
    distance = abs(math.log10(float(params["optimizer.learning_rate"])) + 3.0)
    return 1.0 - 0.5 * distance - 0.1 * (params["adapter.rank"] != 16)


def run_trial(
    ledger: Ledger, spec: SweepSpec, value: Callable[[Params], float] = closure
) -> Params:
    """Ask, report a rising series (with damage at large rates), and finish."""
    number, params = ledger.ask()
    attempt = ledger.begin_attempt(number)
    probes: list[Probe] = []
    verdict = None
    for step in range(1, spec.budget.max_steps + 1):
        is_last = step == spec.budget.max_steps
        drop = 0.9 if float(params.get("optimizer.learning_rate", 0.0)) > 5e-3 else 0.0
        reached = value(params) * step / spec.budget.max_steps
        probes.append(probe(step, reached, drop, "budget" if is_last else None))
        verdict = ledger.report(number, attempt, probes)
        if verdict:
            break
    ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
    return params


def study_in(run_dir: Path) -> optuna.Study:
    """The study as Optuna itself reads it."""
    return optuna.load_study(study_name=None, storage=f"sqlite:///{run_dir / 'ledger.db'}")
