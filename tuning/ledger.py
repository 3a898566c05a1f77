"""Door to optuna: the study, in a file of the run folder or on a server, is the only truth about a sweep.

The driver alone writes it. Every state change is one call here and one transaction, idempotent where a crash may
repeat it, and made once where a connection breaks. What is decided is decided on the trials as they were read back
from it: all of them when it is opened, later only the one that was written. Reading without Optuna is in
:mod:`tuning.records`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from core.errors import UserError, foreign
from core.measuring.selection import GuardVerdict, Probe, guarded_series, running_score
from core.store.durable import finite
from core.text.redaction import redacted
from tuning.committed import Proposal
from tuning.config import Choice, SweepSpec
from tuning.copies import Forms, Shown, study_in_memory
from tuning.database import (
    Place,
    at_once,
    let_go,
    open_file,
    open_server,
    released,
    released_if_refused,
    reopen_server,
)
from tuning.lease import Lease
from tuning.ledger_copy import LedgerCopy, refuse_copy
from tuning.objective import Outcome
from tuning.outage import Outages
from tuning.points import count_points
from tuning.proposals import (
    FIXED,
    PARAMS,
    RETRY_OF,
    Known,
    Proposed,
    is_born,
    next_proposal,
    starting_points,
    tried,
)
from tuning.pruning import (
    ATTEMPT,
    VERDICT,
    Decision,
    as_probed,
    as_ranked,
    decided_before,
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
    put_ledger,
    report_intervals_note,
    report_note,
    unread,
)
from tuning.samplers import distribution_of, propose
from tuning.study_check import refuse_damaged_study

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A ledger on a server, as a driver writes it.

    Attributes:
        place: Where it is.
        outages: How it is met that the server does not answer.
    """

    place: Place
    outages: Outages


class Ledger:
    """A sweep's study, opened by its driver."""

    def __init__(
        self,
        run_dir: Path,
        spec: SweepSpec,
        *,
        create: bool,
        lease: Lease | None = None,
        server: Server | None = None,
    ) -> None:
        """Open the study of ``run_dir``, or create it with the starting points enqueued, whole or not at all.

        Args:
            run_dir: The run folder.
            spec: The sweep.
            create: Make a study in a file of the folder first.
            lease: The right to write it; needed on a server, where others may take the run over.
            server: Where it is, if not in the folder.

        Raises:
            FileExistsError: If it is to be created and exists.
            UserError: If the server cannot be reached, or the file is damaged, or a copy of what lies on one.
        """
        self._spec, self._lease, self._server = spec, lease, server
        self._selection = spec.trial_selection()
        self._pruner = make_pruner(spec.pruning, max_steps=spec.budget.max_steps)
        self._known, self._ranked = Known(spec), Forms(as_ranked)
        self._path = (run_dir / LEDGER_FILE).resolve()
        if create:
            create_study(run_dir, spec, place=None)
        with foreign(partial(_unopened, self._path)) if server is None else nullcontext():
            self._open(open_server)
            with released_if_refused(self._storage):
                self._trials = self._study.get_trials(deepcopy=False)
                refuse_damaged_study(self._study, self._trials, spec)
                self._copy = None if server is None else self._copied(server.place)
        self._n_begun = sum(map(is_born, self._trials))

    def _open(self, connect: Callable[[Place], RDBStorage]) -> None:
        """A connection, and nothing that was remembered from another one."""
        self._handles: dict[int, Trial] = {}
        place = None if self._server is None else self._server.place
        self._storage = open_file(self._path) if place is None else connect(place)
        with released_if_refused(self._storage):
            if place is None:
                refuse_copy(self._storage, self._path)
            self._study = _loaded(self._storage, place, pruner=self._pruner)

    def _copied(self, place: Place) -> LedgerCopy:
        return LedgerCopy(place, self._storage, self._study._study_id, self._path)

    def close(self) -> None:
        """Let go of the database."""
        let_go(self._storage)
        if self._copy is not None:
            self._copy.close()

    def ask(self) -> tuple[int, dict[str, Choice]]:
        """A new trial, or the next starting point: its number and its parameters, seeded by its number."""
        noted = self._ask(
            lambda: self._study._storage.get_study_system_attrs(self._study._study_id)
        )
        proposed = next_proposal(self._spec, self._trials, study_notes=noted, known=self._known)

        def record() -> None:
            if proposed.number == len(self._trials):
                self._study.add_trial(proposed.born())
            else:
                self._bear(self._trials[proposed.number], proposed)

        self._change(record)
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

    def proposal(self, number: int) -> Proposal:
        """What a trial was born with, as :meth:`restore` takes it."""
        trial = self._trials[number]
        kept = ("proposed_by", "source", RETRY_OF)
        return Proposal(
            params=trial.user_attrs[PARAMS],
            user_attrs={k: v for k, v in trial.user_attrs.items() if k in kept},
            system_attrs=dict(trial.system_attrs),
        )

    def restore(self, number: int, proposal: Proposal, decisions: Mapping[str, Any]) -> None:
        """Have again a trial that the ledger has lost, as it was born; numbers before it that nobody has stay open.

        Args:
            number: Its number; no trial that was begun has it.
            proposal: What it was born with.
            decisions: What was decided about its probes.
        """

        def record() -> None:
            while len(self._trials) <= number:
                self._study.add_trial(create_trial(state=TrialState.WAITING))
                self._read(len(self._trials))
            storage, trial_id = self._study._storage, self._trials[number]._trial_id
            for key, value in proposal.system_attrs.items():
                storage.set_trial_system_attr(trial_id, key, value)
            storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            for name, value in proposal.params.items():
                found = distribution_of(self._spec.space[name])
                storage.set_trial_param(trial_id, name, found.to_internal_repr(value), found)
            born = {ATTEMPT: 0, PARAMS: dict(proposal.params)}
            for key, value in (dict(proposal.user_attrs) | dict(decisions) | born).items():
                storage.set_trial_user_attr(trial_id, key, value)

        self._change(record)
        self._read(number)
        self._n_begun += 1

    def add_retries(self, numbers: Iterable[int], *, target: int) -> None:
        """Have new trials wait that repeat failed ones, each with its parameters; the target rises with them.

        Args:
            numbers: Of failed trials.
            target: Trials that the sweep is to reach without them.
        """
        retries = [
            create_trial(
                state=TrialState.WAITING,
                system_attrs={FIXED: self._trials[number].user_attrs[PARAMS]},
                user_attrs={RETRY_OF: number},
            )
            for number in numbers
        ]
        target = max(target, len(self._trials)) + len(retries)
        first = len(self._trials)

        def record() -> None:
            self._study.add_trials(retries)
            self._study.set_user_attr("target", target)

        self._change(record)
        for number in range(first, first + len(retries)):
            self._read(number)
        self._copy_notes()

    def decided(self, number: int) -> dict[str, Any]:
        """What was decided about a trial's probes, as it is recorded."""
        attrs = self._trials[number].user_attrs
        return {k: v for k, v in attrs.items() if k.startswith(VERDICT)}

    def states(self) -> dict[int, str]:
        """The state of each trial that was begun, by number."""
        return {t.number: t.state.name for t in self._trials if is_born(t)}

    @property
    def is_whole(self) -> bool:
        """Whether each trial that ended says what was tried."""
        return _is_whole(self._trials)

    def begin_attempt(self, number: int) -> int:
        """Number of the next attempt at a trial; later attempts fence off earlier ones."""
        attempt = int(self._trials[number].user_attrs[ATTEMPT]) + 1
        self._change(lambda: self._trial(number).set_user_attr(ATTEMPT, attempt))
        self._read(number)
        return attempt

    def report(self, number: int, attempt: int, probes: list[Probe]) -> GuardVerdict | None:
        """Record the last of an attempt's probes and decide whether it goes on.

        A step already in the study (from an earlier attempt, or from before a crash) is not reported
        again. What is decided is recorded before it is returned, and a repetition returns what is recorded. So
        does a probe that an earlier attempt made and this one tells again: what was decided about it stands, for
        the adapter that it would be stopped with may be that of a later probe by now.
        """
        probe = probes[-1]
        watched = self._spec.pruning.retain.metrics if self._spec.pruning.retain else ()
        before, series = self._trials[number], guarded_series(probes)
        made = decisions(before, attempt).get(probe.step)
        carried = decided_before(before, attempt, probe.step) if probe.is_carried else None
        decided = (
            made
            or carried
            or self._decide(as_probed(before, attempt, probes, self._selection), probe)
        )

        def record() -> None:
            trial = self._trial(number)
            for step in (*probe.skipped, probe.step):
                seen = finite({m: series[step][m] for m in watched})
                trial.set_user_attr(guard_key(attempt, step), seen)
            trial.set_user_attr("step", probe.step)
            if probe.step not in before.intermediate_values:
                trial.report(running_score(probes, self._selection), probe.step)
            if made is None:
                trial.set_user_attr(verdict_key(attempt, probe.step), decided.plain())

        self._change(record)
        self._read(number)
        return decided.verdict

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
            ValueError: If the trial already ended otherwise, or what is told is no finite number.
        """
        refuse_unfit(outcome)
        state, current = TrialState[outcome.state], self._trials[number]
        record = finite(asdict(outcome)) | {"adapter": adapter, "duration_s": duration_s}
        record.pop("state")
        if current.state.is_finished():
            _refuse_other(current, outcome, record)
            return

        def tell() -> None:
            trial = self._trial(number)
            for key, value in record.items():
                trial.set_user_attr(key, value)
            for metric, violation in outcome.violations.items():
                if metric not in trial.constraints:  # set by a driver that died before it told
                    trial.set_constraint(metric, violation)
            value = outcome.value if state is TrialState.COMPLETE else None
            self._study.tell(number, value, state=state)

        self._change(tell)
        self._end(number)

    def fail(self, number: int, reason: str) -> None:
        """Give a trial up that broke in all its attempts; one that ended stays as it is."""
        if self._trials[number].state.is_finished():
            return

        def tell() -> None:
            self._trial(number).set_user_attr("reason", redacted(reason))
            self._study.tell(number, state=TrialState.FAIL)

        self._change(tell)
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
        retries = sum(RETRY_OF in t.user_attrs for t in self._trials if not is_born(t))
        return None if left is None else len(begun) + left + retries

    def set_note(self, key: Note, value: float | str | None) -> None:
        """Record something about the sweep as a whole."""
        self._note({key: value})

    def driver_facts(self) -> DriverFacts:
        """What :meth:`set_note` recorded."""
        return DriverFacts.read(self._ask(lambda: self._study.user_attrs))

    def set_report_metrics(
        self,
        number: int,
        metrics: Mapping[str, float],
        *,
        intervals: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Record what a finalist measures on the reporting split, and the intervals of it."""
        notes: dict[str, object] = {report_note(number): metrics}
        if intervals is not None:
            notes = {report_intervals_note(number): intervals} | notes
        self._note(notes)

    def set_evaluation(
        self, number: int, metrics: Mapping[str, float], *, violations: Mapping[str, float]
    ) -> None:
        """Record what suites measure of a finalist, and how far its limits are broken."""
        found = {"metrics": dict(metrics), "violations": dict(violations)}
        self._note({evaluation_note(number): found})

    def has_evaluation(self, number: int) -> bool:
        """Whether :meth:`set_evaluation` was called for the trial."""
        return evaluation_note(number) in self._ask(lambda: self._study.user_attrs)

    def has_report_metrics(self, number: int) -> bool:
        """Whether :meth:`set_report_metrics` was called for the trial."""
        return report_note(number) in self._ask(lambda: self._study.user_attrs)

    def _note(self, notes: Mapping[str, object]) -> None:
        def record() -> None:
            for key, value in notes.items():
                self._study.set_user_attr(key, finite(value))

        self._change(record)
        self._copy_notes()

    def _copy_notes(self) -> None:
        copy = self._copy
        if copy is not None:
            self._ask(lambda: copy.bring_notes(self._storage))

    def _trial(self, number: int) -> Trial:
        """What a running trial is written through."""
        if number not in self._handles:
            self._handles[number] = Trial(self._study, self._trials[number]._trial_id)
        return self._handles[number]

    def _read(self, number: int) -> FrozenTrial:
        """Read a trial back that was written."""

        def read() -> FrozenTrial:
            storage, study_id = self._study._storage, self._study._study_id
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
            if self._copy is not None:
                self._copy.bring_trial(self._storage, trial_id)
            return storage.get_trial(trial_id)

        self._trials[number : number + 1] = [self._ask(read)]
        return self._trials[number]

    def _end(self, number: int) -> None:
        self._handles.pop(number, None)
        self._read(number)

    def _change(self, make: Callable[[], object]) -> None:
        """Write in one transaction, which is this driver's, and once."""

        def change() -> None:
            is_committed = False
            try:
                with at_once(self._storage) as connection:
                    if self._lease is not None:
                        self._lease.claim(connection)
                    make()
                is_committed = True
            finally:
                if not is_committed:
                    self._handles.clear()  # they remember what was not committed

        def change_unless_made() -> None:
            self._reopen()
            if self._lease is None or not self._lease.was_made():
                change()

        self._waited_out(change, change_unless_made)
        if self._lease is not None:
            self._lease.count()

    def _ask(self, ask: Callable[[], Answer]) -> Answer:
        """What a reading says, also if the server has to be waited for."""

        def again() -> Answer:
            self._reopen()
            return ask()

        return self._waited_out(ask, again)

    def _waited_out(self, ask: Callable[[], Answer], again: Callable[[], Answer]) -> Answer:
        return ask() if self._server is None else self._server.outages.waited_out(ask, again)

    def _reopen(self) -> None:
        self._storage.engine.dispose()
        self._open(reopen_server)
        self._study.get_trials(deepcopy=False)  # Optuna writes to a trial that it has seen


def _unopened(path: Path, err: Exception) -> Exception:
    """What is said of a ledger that Optuna cannot read; what the system says of the disk is its own word."""
    return err if isinstance(err, OSError) else unread(path, err)


def refuse_unfit(outcome: Outcome) -> None:
    """Refuse what would make a trial the best one, or none, for ever.

    Raises:
        ValueError: If value or violations are not finite numbers, one of each.
    """
    told = {
        "value": outcome.value,
        **{f"violation of {m}": v for m, v in outcome.violations.items()},
    }
    for name, number in told.items():
        if isinstance(number, bool) or not isinstance(number, float | int) or not isfinite(number):
            raise ValueError(f"{name}: one finite number is expected, got {number!r}")


def _refuse_other(told: FrozenTrial, outcome: Outcome, record: Mapping[str, Any]) -> None:
    """Refuse to change how a trial ended.

    Raises:
        ValueError: If it ended in another state, or with other values; seconds and words may differ.
    """
    if told.state.name != outcome.state:
        raise ValueError(
            f"trial {told.number} is {told.state.name} already, cannot become {outcome.state}"
        )
    for key, value in record.items():
        before = told.user_attrs.get(key, value)  # an earlier release has fewer of them
        if key not in ("duration_s", "reason") and before != value:
            raise ValueError(
                f"trial {told.number} was told with {key} {before!r} already, cannot become {value!r}"
            )


def _is_whole(trials: Iterable[FrozenTrial]) -> bool:
    return all(is_born(trial) for trial in trials if trial.state.is_finished())


def copied(
    source: Callable[[], RDBStorage],
    target: Callable[[], RDBStorage],
    spec: SweepSpec,
    *,
    name: str,
    study: str | None = None,
) -> bool:
    """Copy all trials and notes of a study to a new one, whole or not at all; whether all could be read.

    Args:
        source: Opens the database that has it, which SQLite may call damaged.
        target: Opens the one that gets it.
        spec: The sweep.
        name: Of the new study.
        study: Of the old one; the only one of its database if absent.
    """
    try:
        with foreign(partial(unread, Path(name))), released(source()) as storage:
            old = optuna.load_study(study_name=study, storage=storage)
            trials, notes = old.get_trials(deepcopy=False), old.user_attrs
            noted = storage.get_study_system_attrs(old._study_id)
    except UserError:
        return False
    if not _is_whole(trials):
        return False
    refused = partial(_unopened, Path(name))  # what the system says of the disk is its own word
    try:
        with foreign(refused), released(target()) as storage, at_once(storage):
            new = optuna.create_study(
                study_name=name, storage=storage, direction=spec.objective.direction
            )
            new.add_trials(trials)
            for key, value in notes.items():
                new.set_user_attr(key, value)
            for key, value in noted.items():
                storage.set_study_system_attr(new._study_id, key, value)
    except UserError:  # Optuna looks at what it is given
        return False
    return True


def _loaded(
    storage: RDBStorage, place: Place | None, *, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The study of a place, or the only one of a file, which is named after the run."""
    return optuna.load_study(
        study_name=None if place is None else place.study,
        storage=storage,
        sampler=RandomSampler(seed=0),  # never asked: proposals are made on a copy
        pruner=pruner,
    )


def create_study(run_dir: Path, spec: SweepSpec, *, place: Place | None) -> None:
    """Make a run's study with the starting points enqueued, whole or not at all.

    Args:
        run_dir: The run folder.
        spec: The sweep.
        place: Where it is to lie; ``None`` for a file of the folder.

    Raises:
        FileExistsError: If the folder has a ledger.
        UserError: If the server cannot be reached, or has a study of the name.
    """
    path = (run_dir / LEDGER_FILE).resolve()
    if place is None:
        if path.exists():
            raise FileExistsError(f"{path}: the ledger exists already")
        put_ledger(path, lambda new: _make(open_file(new), spec, name=run_dir.name))
        return
    try:
        _make(open_server(place), spec, name=place.study)
    except optuna.exceptions.DuplicatedStudyError as err:
        raise UserError(
            f"{place.shown}: there is a study {place.study}, which belongs to another run; give another --name"
        ) from err


def _make(storage: RDBStorage, spec: SweepSpec, *, name: str) -> None:
    with released(storage), at_once(storage):
        study = optuna.create_study(
            study_name=name, storage=storage, direction=spec.objective.direction
        )
        study.add_trials(starting_points(spec))
