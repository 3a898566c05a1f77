"""Door to optuna: the study in the run folder is the only truth about a sweep.

The driver alone writes it. Every state change is one call here and one transaction, idempotent where a crash may
repeat it. What is decided is decided on the trials as they were read back from it: all of them when it is opened,
later only the one that was written. Reading without Optuna is in :mod:`tuning.records`.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import optuna
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from core.errors import foreign
from core.measuring.selection import GuardVerdict, Probe, guarded_series, running_score
from core.store.durable import commit, finite
from tuning.config import Choice, SweepSpec
from tuning.copies import Forms, Shown, study_in_memory
from tuning.objective import Outcome
from tuning.points import count_points
from tuning.proposals import (
    FIXED,
    PARAMS,
    Known,
    Proposed,
    is_born,
    next_proposal,
    starting_points,
    tried,
)
from tuning.pruning import (
    ATTEMPT,
    Decision,
    as_probed,
    as_ranked,
    decisions,
    guard_key,
    make_pruner,
    rungs_of,
    verdict_key,
)
from tuning.records import (
    LEDGER_FILE,
    DriverFacts,
    Note,
    evaluation_note,
    report_intervals_note,
    report_note,
    unread,
)
from tuning.samplers import propose
from tuning.study_check import refuse_damaged_study


class Ledger:
    """A sweep's study, opened by its driver."""

    def __init__(self, run_dir: Path, spec: SweepSpec, *, create: bool) -> None:
        """Open the study of ``run_dir``, or create it with the starting points enqueued, whole or not at all.

        Raises:
            FileExistsError: If it is to be created and exists.
            UserError: If it is damaged.
        """
        self._spec = spec
        self._selection = spec.trial_selection()
        self._pruner = make_pruner(spec.pruning, max_steps=spec.budget.max_steps)
        self._handles: dict[int, Trial] = {}
        self._known, self._ranked = Known(spec), Forms(as_ranked)
        path = (run_dir / LEDGER_FILE).resolve()
        if create and path.exists():
            raise FileExistsError(f"{path}: the ledger exists already")
        if create:
            commit(path, lambda new: _create(new, spec, name=run_dir.name))
        with foreign(partial(_unopened, path)):
            self._storage = _storage(path)
            self._study = optuna.load_study(
                study_name=None,  # the only one of the file, named after the run
                storage=self._storage,
                sampler=RandomSampler(seed=0),  # never asked: proposals are made on a copy
                pruner=self._pruner,
            )
            self._trials = self._study.get_trials(deepcopy=False)
            refuse_damaged_study(self._study, self._trials, spec)
        self._n_begun = sum(map(is_born, self._trials))

    def ask(self) -> tuple[int, dict[str, Choice]]:
        """A new trial, or the next starting point: its number and its parameters, seeded by its number."""
        noted = self._study._storage.get_study_system_attrs(self._study._study_id)
        proposed = next_proposal(self._spec, self._trials, study_notes=noted, known=self._known)
        with self._at_once():
            if proposed.number == len(self._trials):
                self._study.add_trial(proposed.born())
            else:
                self._bear(self._trials[proposed.number], proposed)
        self._read(proposed.number)
        self._n_begun += 1
        return proposed.number, proposed.params

    def _bear(self, waiting: FrozenTrial, proposed: Proposed) -> None:
        """Record a proposal for a trial that is there."""
        storage, trial_id = self._study._storage, waiting._trial_id
        for key, value in proposed.trial.system_attrs.items():
            if key != FIXED:
                storage.set_trial_system_attr(trial_id, key, value)
        storage.set_trial_system_attr(trial_id, FIXED, proposed.params)
        storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        trial = self._trial(proposed.number)
        propose(trial, self._spec)
        for key, value in proposed.user_attrs.items():
            trial.set_user_attr(key, value)

    def finish_births(self) -> None:
        """Complete trials whose driver died while it asked for them, under their own numbers and seeds."""
        unborn = [t for t in self._trials if t.state is TrialState.RUNNING and not is_born(t)]
        for _ in unborn:
            self.ask()

    def begin_attempt(self, number: int) -> int:
        """Number of the next attempt at a trial; later attempts fence off earlier ones."""
        attempt = int(self._trials[number].user_attrs[ATTEMPT]) + 1
        self._trial(number).set_user_attr(ATTEMPT, attempt)
        self._read(number)
        return attempt

    def report(self, number: int, attempt: int, probes: list[Probe]) -> GuardVerdict | None:
        """Record the last of an attempt's probes and decide whether it goes on.

        A step already in the study (from an earlier attempt, or from before a crash) is not reported
        again. What is decided is recorded before it is returned, and a repetition returns what is recorded.
        """
        trial, probe = self._trial(number), probes[-1]
        watched = self._spec.pruning.retain.metrics if self._spec.pruning.retain else ()
        before, series = self._trials[number], guarded_series(probes)
        made = decisions(before, attempt).get(probe.step)
        is_new = made is None
        if made is None:
            made = self._decide(as_probed(before, attempt, probes, self._selection), probe)
        with self._at_once():
            for step in (*probe.skipped, probe.step):
                seen = finite({m: series[step][m] for m in watched})
                trial.set_user_attr(guard_key(attempt, step), seen)
            trial.set_user_attr("step", probe.step)
            if probe.step not in before.intermediate_values:
                trial.report(running_score(probes, self._selection), probe.step)
            if is_new:
                trial.set_user_attr(verdict_key(attempt, probe.step), made.plain())
        self._read(number)
        return made.verdict

    def _decide(self, trial: Shown, probe: Probe) -> Decision:
        """The guard's decision; then, about a trial that would go on, the ranking pruner's, on a copy."""
        verdict = self._pruner.guarded(trial)
        if verdict is not None or probe.stopped_by is not None or not self._pruner.ranks:
            return Decision(verdict=verdict, rungs=rungs_of(trial))
        seen = self._ranked.of(self._trials)
        seen[trial.number] = trial
        study = study_in_memory(seen, direction=self._spec.objective.direction)
        ranked = study.get_trials(deepcopy=False)[trial.number]
        verdict = self._pruner.ranked(study, ranked)
        ranked = study.get_trials(deepcopy=False)[trial.number]
        return Decision(verdict=verdict, rungs=rungs_of(ranked))

    def finish(
        self, number: int, outcome: Outcome, *, adapter: str | None, duration_s: float
    ) -> None:
        """Tell a trial once. Repeating the same is harmless.

        Raises:
            ValueError: If the trial already is in another state.
        """
        state = TrialState[outcome.state]
        current = self._trials[number]
        if current.state.is_finished():
            if current.state is not state:
                raise ValueError(
                    f"trial {number} is {current.state.name} already, cannot become {outcome.state}"
                )
            return
        trial = self._trial(number)
        record = finite(asdict(outcome)) | {"adapter": adapter, "duration_s": duration_s}
        record.pop("state")
        with self._at_once():
            for key, value in record.items():
                trial.set_user_attr(key, value)
            for metric, violation in outcome.violations.items():
                if metric not in trial.constraints:  # set by a driver that died before it told
                    trial.set_constraint(metric, violation)
            value = outcome.value if state is TrialState.COMPLETE else None
            self._study.tell(number, value, state=state)
        self._end(number)

    def fail(self, number: int, reason: str) -> None:
        """Give a trial up that broke in all its attempts."""
        if not self._trials[number].state.is_finished():
            with self._at_once():
                self._trial(number).set_user_attr("reason", reason)
                self._study.tell(number, state=TrialState.FAIL)
            self._end(number)

    def running(self) -> list[tuple[int, dict[str, Choice], int]]:
        """Trials begun and not finished: number, parameters, attempt so far."""
        return [
            (t.number, t.user_attrs[PARAMS], int(t.user_attrs.get(ATTEMPT, 0)))
            for t in self._trials
            if t.state is TrialState.RUNNING and is_born(t)
        ]

    def n_begun(self) -> int:
        """Trials asked for so far, with their parameters recorded."""
        return self._n_begun

    def n_points(self) -> int | None:
        """Trials that the space has room for: those begun, and points not tried yet; ``None`` if it is endless."""
        begun = [trial for trial in self._trials if is_born(trial)]
        left = count_points(self._spec, apart_from=tried(self._spec, begun))
        return None if left is None else len(begun) + left

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

    def set_evaluation(
        self, number: int, metrics: Mapping[str, float], *, violations: Mapping[str, float]
    ) -> None:
        """Record what suites measure of a finalist, and how far its limits are broken."""
        found = {"metrics": dict(metrics), "violations": dict(violations)}
        self._study.set_user_attr(evaluation_note(number), finite(found))

    def has_evaluation(self, number: int) -> bool:
        """Whether :meth:`set_evaluation` was called for the trial."""
        return evaluation_note(number) in self._study.user_attrs

    def has_report_metrics(self, number: int) -> bool:
        """Whether :meth:`set_report_metrics` was called for the trial."""
        return report_note(number) in self._study.user_attrs

    def _trial(self, number: int) -> Trial:
        """What a running trial is written through."""
        if number not in self._handles:
            self._handles[number] = Trial(self._study, self._trials[number]._trial_id)
        return self._handles[number]

    def _read(self, number: int) -> FrozenTrial:
        """Read a trial back that was written."""
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        self._trials[number : number + 1] = [storage.get_trial(trial_id)]
        return self._trials[number]

    def _end(self, number: int) -> None:
        self._handles.pop(number, None)
        self._read(number)

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Within the context all writes are one transaction: one wait for the disk, and a kill leaves all or none.

        Optuna's own transactions become savepoints in it.
        """
        sessions = self._storage.scoped_session
        self._storage.remove_session()
        with self._storage.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # else the first savepoint would commit
            sessions.configure(bind=connection, join_transaction_mode="create_savepoint")
            try:
                yield
                connection.commit()
            finally:
                self._storage.remove_session()
                sessions.configure(
                    bind=self._storage.engine, join_transaction_mode="conditional_savepoint"
                )


def _unopened(path: Path, err: Exception) -> Exception:
    """What is said of a ledger that Optuna cannot read; what the system says of the disk is its own word."""
    return err if isinstance(err, OSError) else unread(path, err)


_SYSTEM_ERRORS: Mapping[int, int] = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PROTOCOL: errno.ENOLCK,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
"""What SQLite says in a code of its own, and the system in another."""


def _as_system(err: BaseException | None, place: str | None) -> OSError | None:
    """What SQLite says of a disk as the system's own error, so that it is told as any other write's."""
    number = _SYSTEM_ERRORS.get(getattr(err, "sqlite_errorcode", 0) & 0xFF)
    if number is None:
        return None
    return OSError(number, f"{os.strerror(number)} (SQLite: {err})", place)


def _raise_as_system(context: sqlalchemy.engine.ExceptionContext) -> None:
    place = context.engine.url.database if context.engine is not None else None
    said = _as_system(context.original_exception, place)
    if said is not None:
        raise said from context.original_exception


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """The study's file, opened.

    Raises:
        OSError: If the disk does not let it be opened or written.
    """
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
    except sqlalchemy.exc.DBAPIError as err:
        said = _as_system(err.orig, str(path))
        if said is None:
            raise
        raise said from err
    sqlalchemy.event.listen(storage.engine, "handle_error", _raise_as_system)
    return storage


def _create(path: Path, spec: SweepSpec, *, name: str) -> None:
    storage = _storage(path)
    study = optuna.create_study(
        study_name=name, storage=storage, direction=spec.objective.direction
    )
    study.add_trials(starting_points(spec))
    storage.remove_session()
    storage.engine.dispose()
