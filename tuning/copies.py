"""Door to optuna: copies of the study in memory, on which samplers draw and pruners compare.

What they note while they do so stays in the copy. A copy is made for each question, so it must be cheap also when a
thousand trials have ended: a trial's form in it is made once, and taken as it is.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, TypeVar

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

STUDY = "sweep"

Form = TypeVar("Form")


class Shown(FrozenTrial):
    """A trial as a copy of the study shows it.

    The copy takes what is in it as it is: Optuna never writes into a trial that it holds, it puts a changed one in
    its place.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shown":
        """What Optuna makes of each trial that it is given."""
        return copy.copy(self)

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Shown":
        """A trial whose attributes can be replaced without changing the given one."""
        shown = cls.__new__(cls)
        shown.__dict__.update(trial.__dict__)
        return shown


class Forms(Generic[Form]):
    """A form of each trial of a study, made once for trials that ended: they do not change any more."""

    def __init__(self, make: Callable[[FrozenTrial], Form]) -> None:
        """Make it by ``make``."""
        self._make = make
        self._of_ended: dict[int, tuple[FrozenTrial, Form]] = {}  # by identity: it holds the trial

    def of(self, trials: Iterable[FrozenTrial]) -> list[Form]:
        """The form of each of these trials."""
        return [self._of(trial) for trial in trials]

    def _of(self, trial: FrozenTrial) -> Form:
        if id(trial) in self._of_ended:
            return self._of_ended[id(trial)][1]
        made = self._make(trial)
        if trial.state.is_finished():
            self._of_ended[id(trial)] = (trial, made)
        return made


def study_in_memory(
    trials: Iterable[Shown], *, direction: Literal["minimize", "maximize"]
) -> optuna.Study:
    """A study of these trials, numbered in their order."""
    study = optuna.create_study(
        direction=direction, study_name=STUDY, sampler=RandomSampler(seed=0)
    )
    for trial in trials:
        study._storage.create_new_trial(study._study_id, template_trial=trial)
    return study
