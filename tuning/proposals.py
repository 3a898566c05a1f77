"""Door to optuna: the next proposal, made on a copy of the study in memory.

What a sampler notes while it draws stays in the copy, which shows the trials in the form that it reads. The ledger
then records a proposal whole: a driver that dies has made it or not.
"""

import copy
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from core.seeding import derive_seed
from tuning.config import Choice, SweepSpec
from tuning.copies import Forms, Shown, study_in_memory
from tuning.points import Mark, is_finite, mark, points
from tuning.prior import drawn_here
from tuning.pruning import ATTEMPT
from tuning.samplers import is_fitted, kind_of, make_sampler, propose

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it logs of each study is no news

FIXED = "fixed_params"
"""System attribute, Optuna's: values of a starting point."""
NOTES = "sampler_notes"
"""System attribute of a trial: what its sampler noted about the study as a whole while it proposed."""
PARAMS = "params"
"""User attribute: the proposal. A trial without it is not yet born."""

_TRIES = 4
_DRAWN_FROM = 1_000
_OWN_NOTES = "qmc:"

RETRY_OF = "retry_of"
"""User attribute of a trial: number of the failed one that it repeats."""

ProposedBy = Literal["start_from", "startup", "sampler", "prior", "retry"]
"""Who proposed a trial: the sweep file, the sampler by chance (before its model is fitted, or because what it
proposes was tried), the fitted sampler, its prior, or a failed trial that is repeated."""


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A proposal for the next trial.

    Attributes:
        number: The trial's number.
        params: A value for each dimension whose conditions hold.
        proposed_by: Who made it.
        trial: As Optuna made it: parameters, distributions, and what the sampler noted.
    """

    number: int
    params: dict[str, Choice]
    proposed_by: ProposedBy
    trial: FrozenTrial

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What is recorded of it; the parameters last, because they make a trial born."""
        return {"proposed_by": self.proposed_by, ATTEMPT: 0, PARAMS: self.params}

    def born(self) -> FrozenTrial:
        """The running trial that the proposal makes."""
        made = self.trial
        return create_trial(
            state=TrialState.RUNNING,
            params=made.params,
            distributions=made.distributions,
            system_attrs=made.system_attrs,
            user_attrs=self.user_attrs,
        )


def starting_points(spec: SweepSpec) -> list[FrozenTrial]:
    """The sweep file's starting points, waiting, each with its source; complete ones that are equal only once."""
    found: dict[object, FrozenTrial] = {}
    for place, start in enumerate(spec.start_from):
        is_complete = start.values.keys() == spec.space.keys()
        key: object = mark(spec, start.values) if is_complete else place
        if key not in found:
            found[key] = create_trial(
                state=TrialState.WAITING,
                system_attrs={FIXED: dict(start.values)},
                user_attrs={"source": start.source},
            )
    return list(found.values())


def is_born(trial: FrozenTrial) -> bool:
    """Whether a trial's proposal is recorded."""
    return PARAMS in trial.user_attrs


def tried(spec: SweepSpec, trials: Iterable[FrozenTrial]) -> frozenset[Mark]:
    """Points that these trials stand for, those waiting with all their values included."""
    return frozenset(filter(None, (_point(spec, trial) for trial in trials)))


def _point(spec: SweepSpec, trial: FrozenTrial) -> Mark | None:
    params = trial.params
    if trial.state is TrialState.WAITING:
        params = trial.system_attrs.get(FIXED, {})
        params = params if params.keys() == spec.space.keys() else {}
    return mark(spec, params) if params else None


class Known:
    """What proposals read of a study's trials, made once for each that ended."""

    def __init__(self, spec: SweepSpec) -> None:
        """For a sweep."""
        self.shown: dict[bool, Forms[Shown]] = {
            reads: Forms(partial(as_sampled, reads_pruned=reads)) for reads in (True, False)
        }
        self.points: Forms[Mark | None] = Forms(lambda trial: _point(spec, trial))


def next_proposal(
    spec: SweepSpec,
    trials: Sequence[FrozenTrial],
    *,
    study_notes: Mapping[str, Any] | None = None,
    known: Known | None = None,
) -> Proposed:
    """What to try next, seeded by the number of the trial: the same for the same trials.

    A point that was tried is not proposed again: the sampler is asked anew, and in the end a point is drawn that was
    not tried. Only where there is none left, or the sweep file fixes every value, it comes again.

    Args:
        spec: The sweep.
        trials: The whole study; the first that is not born is proposed for, otherwise a new one.
        study_notes: Attributes of a study that samplers wrote to it themselves.
        known: What earlier proposals have read of its trials; it changes nothing but the time.
    """
    known = known or Known(spec)
    number = next((n for n, t in enumerate(trials) if not is_born(t)), len(trials))
    unborn = trials[number] if number < len(trials) else None
    reads_pruned = kind_of(spec, number=number).reads_pruned
    others = frozenset(filter(None, known.points.of([*trials[:number], *trials[number + 1 :]])))
    fixed = _fixed(unborn) if unborn else {}
    expected = {} if fixed else _expected(spec, number, trials, others)
    fixed = fixed or expected
    shown = known.shown[reads_pruned].of(trials[: number + 1])
    if expected and unborn is not None:
        shown[number].system_attrs = {FIXED: expected}
    study = study_in_memory(shown, direction=spec.objective.direction)
    noted = {k: v for k, v in (study_notes or {}).items() if k.startswith(_OWN_NOTES)}
    for trial in trials[:number]:
        noted |= trial.system_attrs.get(NOTES, {})
    for key, value in noted.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    if expected and unborn is None:
        study.enqueue_trial(expected)
    made, proposed_by = _untried(spec, study, number, fixed, others)
    after = study._storage.get_study_system_attrs(study._study_id)
    notes = {k: v for k, v in after.items() if noted.get(k) != v}
    if notes:
        made.system_attrs = made.system_attrs | {NOTES: notes}
    if unborn is not None and RETRY_OF in unborn.user_attrs:
        proposed_by = "retry"
    elif unborn is not None and "source" in unborn.user_attrs:
        proposed_by = "start_from"
    elif expected:
        proposed_by = "prior"
    return Proposed(
        number=number,
        params=made.params,
        proposed_by=proposed_by,
        trial=made,
    )


def _expected(
    spec: SweepSpec, number: int, trials: Sequence[FrozenTrial], others: frozenset[Mark]
) -> dict[str, Choice]:
    """What the prior proposes for a trial, if it does and that was not tried."""
    if spec.sampler.prior is None:
        return {}
    sign = -1.0 if spec.objective.direction == "minimize" else 1.0
    ended = [t for t in trials[:number] if t.state.is_finished() and t.values]
    worths: dict[bool, list[float]] = {True: [], False: []}
    for trial in ended:
        is_drawn = trial.user_attrs.get("proposed_by") == "prior"
        worths[is_drawn].append(sign * trial.values[0])
    found = drawn_here(spec, number=number, drawn=worths[True], others=worths[False])
    return {} if mark(spec, found) in others else found


def _untried(
    spec: SweepSpec,
    study: optuna.Study,
    number: int,
    start: dict[str, Choice],
    others: frozenset[Mark],
) -> tuple[FrozenTrial, ProposedBy]:
    """A trial of the study whose point is not among ``others``, if there is one, and who proposed it."""
    for again in range(_TRIES):
        if again and start:
            study.enqueue_trial(start)
        study.sampler = make_sampler(spec, number=number, again=again)
        proposed_by: ProposedBy = "sampler" if is_fitted(spec.sampler, study) else "startup"
        made = _asked(spec, study)
        if mark(spec, made.params) not in others or made.params.keys() <= start.keys():
            return made, proposed_by
    if all(map(is_finite, spec.space.values())):
        untried = (p for p in points(spec) if mark(spec, p) not in others)
        found = list(itertools.islice(untried, _DRAWN_FROM))
        found = [p for p in found if start.items() <= p.items()] or found
        if not found:
            return made, proposed_by
        drawn = derive_seed(spec.sampler.seed, "untried", number) % len(found)
        study.enqueue_trial(found[drawn])
    study.sampler = RandomSampler(seed=derive_seed(spec.sampler.seed, "untried", number))
    return _asked(spec, study), "startup"


def _asked(spec: SweepSpec, study: optuna.Study) -> FrozenTrial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        trial = study.ask()
        propose(trial, spec)
    return copy.deepcopy(study.get_trials(deepcopy=False)[trial.number])


def as_sampled(trial: FrozenTrial, *, reads_pruned: bool) -> Shown:
    """A trial in the form that a sampler reads: a pruned one as complete, where it would not look at it."""
    seen = Shown.of(trial)
    seen.user_attrs = {}
    if not is_born(trial):
        seen.state = TrialState.WAITING
        seen.params, seen.distributions = {}, {}
        if trial.state is TrialState.WAITING:
            seen.system_attrs = {k: v for k, v in trial.system_attrs.items() if k == FIXED}
        elif trial.params:  # begun by a driver that recorded value by value
            seen.system_attrs = dict(trial.system_attrs) | {FIXED: _fixed(trial)}
    elif trial.state is TrialState.PRUNED and trial.values is not None and not reads_pruned:
        seen.state = TrialState.COMPLETE
    return seen


def _fixed(trial: FrozenTrial) -> dict[str, Choice]:
    """Values that a trial's proposal must have."""
    return dict(trial.system_attrs.get(FIXED, {})) | trial.params
