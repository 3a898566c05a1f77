"""Whether a study, as Optuna gives it, is what a driver of ours wrote; the sampler and the pruner believe it."""

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.attributes import are_choices, refuse_damaged, refuse_damaged_decisions
from tuning.config import SweepSpec
from tuning.proposals import FIXED, NOTES, PARAMS, is_born


def refuse_damaged_study(
    study: optuna.Study, trials: Sequence[FrozenTrial], spec: SweepSpec
) -> None:
    """Refuse a study of another sweep, or with a trial that no driver wrote so.

    Args:
        study: The study.
        trials: All its trials, by number.
        spec: The sweep that it is to be of.

    Raises:
        ValueError: With the first such trial and what is wrong with it.
    """
    direction = study.direction.name.lower()
    if direction != spec.objective.direction:
        raise ValueError(
            f"its objective has direction {direction}, and that of the sweep {spec.objective.direction}"
        )
    for number, trial in enumerate(trials):
        if trial.number != number:
            raise ValueError(f"trial {number} is missing, of {len(trials)} that are there")
        refuse_damaged(number, trial.state.name, trial.user_attrs)
        refuse_damaged_decisions(number, trial.user_attrs)
        problem = _problem(trial)
        if problem is not None:
            raise ValueError(f"trial {number}: {problem}")


def _problem(trial: FrozenTrial) -> str | None:
    told = None if trial.values is None else trial.values[0]
    if trial.state is TrialState.COMPLETE and (told is None or not math.isfinite(told)):
        return f"its value must be a number, got {told}"
    noted = trial.user_attrs.get(PARAMS)
    if trial.state is TrialState.WAITING and (is_born(trial) or trial.params):
        return "it waits, and has begun"
    if trial.state.is_finished() and not is_born(trial):
        return "it has ended, and its parameters are not there"
    if is_born(trial) and noted != trial.params:
        return f"its parameters are {trial.params} in one table and {noted} in another"
    if not are_choices(trial.system_attrs.get(FIXED, {})):
        return f"{FIXED} must be values by name, got {trial.system_attrs[FIXED]!r}"
    if not isinstance(trial.system_attrs.get(NOTES, {}), Mapping):
        return f"{NOTES} must be values by name, got {trial.system_attrs[NOTES]!r}"
    return None
