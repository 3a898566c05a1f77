"""Optuna pruners of a sweep: the retain guard, with an ordinary ranking pruner behind it.

A new ranking pruner is an id in :class:`tuning.config.PruningSpec` and an entry of :data:`RANKINGS`; tests go over
both.
"""

from collections.abc import Callable, Mapping

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from core.config import RetainGuardConfig
from core.measuring.selection import GuardVerdict, guard_verdict
from tuning.config import PruningSpec, RankingName

ATTEMPT = "attempt"
"""User attribute: number of the current attempt at a trial."""


def guard_key(attempt: int, step: int) -> str:
    """User attribute that holds the guarded metrics of one probe of one attempt."""
    return f"guard:{attempt}:{step}"


class RetainGuardPruner(BasePruner):
    """Prunes a trial whose retained text degrades; otherwise asks a ranking pruner.

    The guard reads a second series, the guarded metrics in the user attributes of the trial's *current*
    attempt. The ranking pruner reads Optuna's intermediate values, which are the best feasible
    objective so far (never the raw forget score: under a guard that kills every trial).
    """

    def __init__(self, guard: RetainGuardConfig | None, ranking: BasePruner) -> None:
        """Keep both parts."""
        self._guard, self._ranking = guard, ranking

    def prune(self, study: "optuna.study.Study", trial: FrozenTrial) -> bool:
        """Optuna's question."""
        return self.verdict(study, trial) is not None

    def verdict(self, study: "optuna.study.Study", trial: FrozenTrial) -> GuardVerdict | None:
        """The decision with its reason; ``None`` to go on."""
        if self._guard is not None:
            verdict = guard_verdict(guard_series(trial), self._guard)
            if verdict is not None:
                return verdict
        if trial.intermediate_values and self._ranking.prune(study, trial):
            step = max(trial.intermediate_values)
            value = trial.intermediate_values[step]
            return GuardVerdict(
                stopped_by="ranking_pruner",
                metric="best feasible objective so far",
                value=value,
                limit=value,
                reason=f"{value:.3f} at step {step} ranks behind the other trials",
            )
        return None


def guard_series(trial: FrozenTrial) -> list[Mapping[str, float]]:
    """Guarded metrics of the current attempt, in the order of their steps."""
    prefix = f"guard:{trial.user_attrs.get(ATTEMPT, 1)}:"
    found = {
        int(key.removeprefix(prefix)): {name: float(v) for name, v in value.items()}
        for key, value in trial.user_attrs.items()
        if key.startswith(prefix)
    }
    return [found[step] for step in sorted(found)]


def make_pruner(spec: PruningSpec, *, max_steps: int) -> RetainGuardPruner:
    """The sweep's pruner."""
    return RetainGuardPruner(spec.retain, RANKINGS[spec.ranking](spec, max_steps))


def _median(spec: PruningSpec, max_steps: int) -> BasePruner:
    return optuna.pruners.MedianPruner(
        n_startup_trials=spec.startup_trials, n_warmup_steps=spec.warmup_steps
    )


def _successive_halving(spec: PruningSpec, max_steps: int) -> BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, spec.warmup_steps), reduction_factor=spec.reduction_factor
    )


def _hyperband(spec: PruningSpec, max_steps: int) -> BasePruner:
    return optuna.pruners.HyperbandPruner(
        min_resource=1, max_resource=max_steps, reduction_factor=spec.reduction_factor
    )


RANKINGS: Mapping[RankingName, Callable[[PruningSpec, int], BasePruner]] = {
    "none": lambda spec, max_steps: optuna.pruners.NopPruner(),
    "median": _median,
    "successive_halving": _successive_halving,
    "hyperband": _hyperband,
}
"""Makes each ranking pruner, from its settings and the largest number of steps of a trial."""
