"""Door to optuna: the study in the run folder is the only truth about a sweep.

The driver alone writes it. Every state change is one call here, idempotent where a crash may repeat it.
Reading without Optuna is in :mod:`tuning.records`.
"""

import copy
import errno
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from core.measuring.selection import GuardVerdict, Probe, running_score
from core.store.durable import finite
from tuning.config import Choice, SweepSpec
from tuning.objective import Outcome
from tuning.pruning import ATTEMPT, guard_key, make_pruner
from tuning.records import LEDGER_FILE, DriverFacts, Note, report_intervals_note, report_note
from tuning.samplers import is_fitted, make_sampler, n_points, propose

STUDY = "sweep"


ProposedBy = Literal["start_from", "startup", "sampler"]
"""Who proposed a trial: the sweep file, the sampler before its model is fitted, or the fitted sampler."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Ledger:
    """A sweep's study, opened by its driver."""

    def __init__(self, run_dir: Path, spec: SweepSpec, *, create: bool) -> None:
        """Open the study of ``run_dir``, or create it with the starting points enqueued."""
        self._spec = spec
        self._selection = spec.trial_selection()
        self._pruner = make_pruner(spec.pruning, max_steps=spec.budget.max_steps)
        self._handles: dict[int, Trial] = {}
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{(run_dir / LEDGER_FILE).resolve()}",
            engine_kwargs={"connect_args": {"timeout": 60}},
        )
        sqlalchemy.event.listen(storage.engine, "handle_error", _raise_disk_full)
        arguments: dict[str, Any] = {
            "study_name": STUDY,
            "storage": storage,
            "sampler": make_sampler(spec, number=0),
            "pruner": self._pruner,
        }
        if create:
            self._study = optuna.create_study(direction="maximize", **arguments)
            for start in spec.start_from:
                self._study.enqueue_trial(start.values, user_attrs={"source": start.source})
        else:
            self._study = optuna.load_study(**arguments)

    def ask(self) -> tuple[int, dict[str, Choice]]:
        """A new trial: its number and its parameters, seeded by its number."""
        number = len(self._study.get_trials(deepcopy=False))
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting:
            number = waiting[0].number
        self._study.sampler = make_sampler(self._spec, number=number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask()
            self._handles[trial.number] = trial
            return trial.number, self._name_parameters(trial)

    def finish_births(self) -> None:
        """Complete trials whose driver died while it asked for them, under their own numbers and seeds."""
        for unborn in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "params" in unborn.user_attrs:
                continue
            self._study.sampler = make_sampler(self._spec, number=unborn.number)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.sampler.before_trial(self._study, unborn)
                self._name_parameters(self._trial(unborn.number))

    def _name_parameters(self, trial: Trial) -> dict[str, Choice]:
        fitted = is_fitted(self._spec.sampler, self._study)
        proposed_by: ProposedBy = "sampler" if fitted else "startup"
        proposal = propose(trial, self._spec)
        is_start = "source" in trial.user_attrs  # enqueued with its source
        trial.set_user_attr("proposed_by", "start_from" if is_start else proposed_by)
        trial.set_user_attr(ATTEMPT, 0)
        trial.set_user_attr("params", proposal)  # last: a trial without it is not yet born
        return proposal

    def begin_attempt(self, number: int) -> int:
        """Number of the next attempt at a trial; later attempts fence off earlier ones."""
        attempt = int(self._frozen(number).user_attrs[ATTEMPT]) + 1
        self._trial(number).set_user_attr(ATTEMPT, attempt)
        return attempt

    def report(self, number: int, attempt: int, probes: list[Probe]) -> GuardVerdict | None:
        """Record the last of an attempt's probes and decide whether it goes on.

        A step already in the study (from an earlier attempt, or from before a crash) is not reported
        again.
        """
        trial = self._trial(number)
        probe = probes[-1]
        watched = self._spec.pruning.retain.metrics if self._spec.pruning.retain else ()
        trial.set_user_attr(
            guard_key(attempt, probe.step), finite({m: probe.metrics[m] for m in watched})
        )
        trial.set_user_attr("step", probe.step)
        if probe.step not in self._frozen(number).intermediate_values:
            trial.report(running_score(probes, self._selection), probe.step)
        return self._pruner.verdict(self._study, _up_to(self._frozen(number), attempt, probe.step))

    def finish(
        self, number: int, outcome: Outcome, *, adapter: str | None, duration_s: float
    ) -> None:
        """Tell a trial once. Repeating the same is harmless.

        Raises:
            ValueError: If the trial already is in another state.
        """
        state = TrialState[outcome.state]
        current = self._frozen(number)
        if current.state.is_finished():
            if current.state is not state:
                raise ValueError(
                    f"trial {number} is {current.state.name} already, cannot become {outcome.state}"
                )
            return
        trial = self._trial(number)
        record = finite(asdict(outcome)) | {"adapter": adapter, "duration_s": duration_s}
        record.pop("state")
        for key, value in record.items():
            trial.set_user_attr(key, value)
        for metric, violation in outcome.violations.items():
            trial.set_constraint(metric, violation)
        if state is TrialState.COMPLETE:
            self._study.tell(number, outcome.value, state=state)
        else:
            self._study.tell(number, state=state)
        del self._handles[number]

    def fail(self, number: int, reason: str) -> None:
        """Give a trial up that broke in all its attempts."""
        if not self._frozen(number).state.is_finished():
            self._trial(number).set_user_attr("reason", reason)
            self._study.tell(number, state=TrialState.FAIL)
            del self._handles[number]

    def running(self) -> list[tuple[int, dict[str, Choice], int]]:
        """Trials begun and not finished: number, parameters, attempt so far."""
        return [
            (t.number, t.user_attrs["params"], int(t.user_attrs.get(ATTEMPT, 0)))
            for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if "params" in t.user_attrs
        ]

    def n_begun(self) -> int:
        """Trials asked for so far, with their parameters recorded."""
        return sum("params" in t.user_attrs for t in self._study.get_trials(deepcopy=False))

    def n_points(self) -> int | None:
        """Points of a grid and the starting points together; ``None`` for an endless sampler."""
        points = n_points(self._spec)
        return None if points is None else points + len(self._spec.start_from)

    def set_note(self, key: Note, value: float | str | None) -> None:
        """Record something about the sweep as a whole."""
        self._study.set_user_attr(key, finite(value))

    def driver_facts(self) -> DriverFacts:
        """What :meth:`set_note` recorded."""
        return DriverFacts.read(self._study.user_attrs)

    def set_report_metrics(
        self,
        number: int,
        metrics: Mapping[str, float],
        *,
        intervals: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Record what a finalist measures on the reporting split, and the intervals of it."""
        if intervals is not None:
            self._study.set_user_attr(report_intervals_note(number), finite(intervals))
        self._study.set_user_attr(report_note(number), finite(metrics))

    def has_report_metrics(self, number: int) -> bool:
        """Whether :meth:`set_report_metrics` was called for the trial."""
        return report_note(number) in self._study.user_attrs

    def _trial(self, number: int) -> Trial:
        """What a running trial is written through; made once, because Optuna asks the sampler for each."""
        if number not in self._handles:
            self._handles[number] = Trial(self._study, self._frozen(number)._trial_id)
        return self._handles[number]

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _raise_disk_full(context: sqlalchemy.engine.ExceptionContext) -> None:
    """Say in the system's own way what SQLite says in words."""
    if "disk is full" in str(context.original_exception):
        place = context.engine.url.database if context.engine is not None else None
        raise OSError(errno.ENOSPC, "the disk is full", place)


def _up_to(trial: FrozenTrial, attempt: int, step: int) -> FrozenTrial:
    """The trial as it stood after ``step``: a replay must not see what was reported later."""
    seen = copy.copy(trial)
    seen.intermediate_values = {s: v for s, v in trial.intermediate_values.items() if s <= step}
    later = {guard_key(attempt, s) for s in trial.intermediate_values if s > step}
    seen.user_attrs = {k: v for k, v in trial.user_attrs.items() if k not in later}
    return seen
