"""Optuna pruners of a sweep: the retain guard, with an ordinary ranking pruner behind it.

A new ranking pruner is an id in :class:`tuning.config.PruningSpec` and an entry of :data:`RANKINGS`; tests go over
both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from core.config import RetainGuardConfig, SelectionConfig
from core.errors import FileError, in_a_line
from core.measuring.selection import (
    GuardVerdict,
    Probe,
    guard_verdict,
    guarded_series,
    running_score,
)
from core.store.durable import finite
from tuning.config import PruningSpec, RankingName
from tuning.copies import Shown
from tuning.records import LEDGER_FILE

ATTEMPT = "attempt"
"""User attribute: number of the current attempt at a trial."""

VERDICT = "verdict:"
"""How the user attributes begin that hold decisions."""

_RUNG = "completed_rung_"
"""System attribute, Optuna's, up to the number of the rung."""


def guard_key(attempt: int, step: int) -> str:
    """User attribute that holds the guarded metrics of one probe of one attempt."""
    return f"guard:{attempt}:{step}"


def verdict_key(attempt: int, step: int) -> str:
    """User attribute that holds what was decided about one probe of one attempt."""
    return f"{VERDICT}{attempt}:{step}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about a probe, recorded before anybody acts on it.

    Attributes:
        verdict: Why the trial is stopped; ``None`` if it goes on.
        rungs: Rungs of successive halving that its attempt has completed: Optuna's attribute to the value there.
    """

    verdict: GuardVerdict | None
    rungs: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        """As it is recorded."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Decision":
        """From the record.

        Raises:
            FileError: If it is none: the ledger is damaged.
        """
        try:
            found = plain["verdict"]
            if found is not None:
                numbers = {name: float(found[name]) for name in ("value", "limit")}
                found = GuardVerdict(**(found | numbers))
            return cls(verdict=found, rungs=plain["rungs"])
        except (KeyError, TypeError, ValueError) as err:
            problem = f"a decision on a trial cannot be read ({in_a_line(err)}); restore the file from a copy"
            raise FileError(LEDGER_FILE, problem) from err


def decisions(trial: FrozenTrial, attempt: int) -> dict[int, Decision]:
    """What was decided about an attempt's probes, by their steps in order."""
    prefix = verdict_key(attempt, 0).removesuffix("0")
    found = {
        int(key.removeprefix(prefix)): Decision.read(value)
        for key, value in trial.user_attrs.items()
        if key.startswith(prefix)
    }
    return dict(sorted(found.items()))


def decided_before(trial: FrozenTrial, attempt: int, step: int) -> Decision | None:
    """What was decided about a probe in the last attempt before one that came to it; ``None`` if none did."""
    for before in range(attempt - 1, 0, -1):
        made = decisions(trial, before).get(step)
        if made is not None:
            return made
    return None


def as_ranked(trial: FrozenTrial) -> Shown:
    """A trial as a ranking pruner reads it: with the rungs of its current attempt only.

    A ledger of an earlier version has no records of decisions, and rungs where Optuna wrote them.
    """
    seen = Shown.of(trial)
    seen.user_attrs = {}
    made = list(decisions(trial, int(trial.user_attrs.get(ATTEMPT, 1))).values())
    if made or not trial.state.is_finished():
        seen.system_attrs = _without_rungs(trial) | dict(made[-1].rungs if made else {})
    return seen


def rungs_of(trial: FrozenTrial) -> dict[str, float]:
    """Rungs that a trial has completed, as Optuna writes them."""
    return {k: float(v) for k, v in trial.system_attrs.items() if k.startswith(_RUNG)}


def as_probed(
    trial: FrozenTrial, attempt: int, probes: Sequence[Probe], selection: SelectionConfig
) -> Shown:
    """A trial as an attempt's probes make it: nothing of other attempts, and nothing of what came later.

    Args:
        trial: The trial as the study has it.
        attempt: The attempt.
        probes: Its probes up to the one that is decided about.
        selection: Says what their intermediate values are.
    """
    seen, series = Shown.of(trial), guarded_series(probes)
    guarded = {guard_key(attempt, step): dict(metrics) for step, metrics in series.items()}
    seen.user_attrs = {ATTEMPT: attempt, **guarded}
    seen.intermediate_values = {
        p.step: running_score(probes[:n], selection) for n, p in enumerate(probes, start=1)
    }
    made = [d for step, d in decisions(trial, attempt).items() if step < probes[-1].step]
    seen.system_attrs = _without_rungs(trial) | dict(made[-1].rungs if made else {})
    return seen


def _without_rungs(trial: FrozenTrial) -> dict[str, Any]:
    return {k: v for k, v in trial.system_attrs.items() if not k.startswith(_RUNG)}


class RetainGuardPruner(BasePruner):
    """Prunes a trial whose retained text degrades; otherwise asks a ranking pruner.

    The guard reads a second series, the guarded metrics in the user attributes of the trial's *current*
    attempt. The ranking pruner reads Optuna's intermediate values, which are the best feasible
    objective so far (never the raw forget score: under a guard that kills every trial).
    """

    def __init__(self, guard: RetainGuardConfig | None, ranking: BasePruner) -> None:
        """Keep both parts."""
        self._guard, self._ranking = guard, ranking

    @property
    def ranks(self) -> bool:
        """Whether trials are compared at all."""
        return not isinstance(self._ranking, optuna.pruners.NopPruner)

    def prune(self, study: "optuna.study.Study", trial: FrozenTrial) -> bool:
        """Optuna's question."""
        return (self.guarded(trial) or self.ranked(study, trial)) is not None

    def guarded(self, trial: FrozenTrial) -> GuardVerdict | None:
        """The guard's decision with its reason; ``None`` to go on."""
        return None if self._guard is None else guard_verdict(guard_series(trial), self._guard)

    def ranked(self, study: "optuna.study.Study", trial: FrozenTrial) -> GuardVerdict | None:
        """The ranking pruner's decision with its reason; ``None`` to go on.

        Only to be asked about a trial that would go on: one that has made all its steps is not stopped by a
        comparison.
        """
        if not trial.intermediate_values or not self._ranking.prune(study, trial):
            return None
        step = max(trial.intermediate_values)
        value = trial.intermediate_values[step]
        return GuardVerdict(
            stopped_by="ranking_pruner",
            metric="best feasible objective so far",
            value=value,
            limit=value,
            reason=f"{value:.3f} at step {step} ranks behind the other trials",
        )


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
