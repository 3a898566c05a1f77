"""What runs next, and what a trial that ended is told: the driver's decisions, whoever executes them."""

import errno
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from core.config import TrialConfig
from core.errors import ConfigError, EndedError, UserError
from core.measuring.selection import GuardVerdict, Probe
from core.store.ballast import Ballast, is_full
from core.store.durable import commit_yaml
from core.store.told import RESULT_FILE
from tuning.committed import (
    PROPOSAL_FILE,
    commit_proposal,
)
from tuning.concluding import LostAdapterError, conclude_attempt
from tuning.config import Choice, SweepSpec
from tuning.events import (
    EventLog,
    TrialBegan,
    TrialBroke,
    TrialEnded,
    TrialProbed,
    TrialResumed,
    Warned,
)
from tuning.failures import (
    FAILURE_FILE,
    TIMED_OUT,
    Failure,
    Machines,
    choose_remedy,
    halved,
    known_failures,
    n_counted,
    read_failure,
    record_final,
    record_lack_of_room,
    record_lost_node,
    record_remedy,
    remedies,
)
from tuning.ledger import Ledger
from tuning.records import attempt_folder
from tuning.resuming import remove_checkpoints
from tuning.screening import probe_problem
from tuning.space import bind
from tuning.storage.home import Home
from tuning.storage.keeping import InPlace, Keeper

_LAST_WAIT_S = 20.0
"""How long a sweep that is being ended waits for the storage; the run folder has all of it, too."""
TRIAL_FILE = "trial.yaml"
"""What the driver writes of an attempt before it begins: its configuration."""
Written = TypeVar("Written")


@dataclass
class Assignment:
    """A trial handed to Tune.

    Attributes:
        home: Where it is written and kept, and the attempts before it, whose checkpoints it may go on from.
        machines: Of the cluster, when it began.
    """

    number: int
    attempt: int
    trial: TrialConfig
    home: Home
    probes: list[Probe] = field(default_factory=list)
    verdict: GuardVerdict | None = None
    unfit: str | None = None
    began: float = field(default_factory=time.monotonic)
    machines: Machines = field(default_factory=Machines)

    @property
    def has_ended(self) -> bool:
        """Whether the trial ended by a rule, its own or the sweep's, and not because the driver ends."""
        return self.verdict is not None or (
            bool(self.probes) and self.probes[-1].stopped_by is not None
        )

    @property
    def folder(self) -> Path:
        """Its folder in the run folder."""
        return self.home.folder

    @property
    def name(self) -> str:
        """The same, relative to the run folder."""
        return attempt_folder(self.number, self.attempt)


class Dispatcher:
    """Decides what runs next and what a finished trial is told. One for a driver's life.

    An error of the driver's own, such as a disk that cannot be written, would be taken by Tune for the trial's:
    it is kept here, ends the sweep, and is raised by :meth:`raise_error`.
    """

    def __init__(
        self,
        spec: SweepSpec,
        run_dir: Path,
        ledger: Ledger,
        log: EventLog,
        *,
        target: int,
        concurrent: int = 1,
        needs: str = "",
        ballast: Ballast | None = None,
        machines: Callable[[], Machines] = Machines,
        grace_s: float = 0.0,
        keeper: Keeper | None = None,
    ) -> None:
        """Plan to bring ``ledger`` to ``target`` trials; interrupted trials come first.

        Args:
            spec: The sweep.
            run_dir: Its folder.
            ledger: Its study.
            log: Where events go.
            target: Trials of the whole sweep.
            concurrent: Trials at the same time, until memory is not enough for them.
            needs: What a rank was estimated to need, for messages about memory.
            ballast: Room for the last results where the disk is full; none is kept if absent.
            machines: Says which there are in the cluster.
            grace_s: How long running trials may take to come to their next probe when the sweep is to end.
            keeper: Keeps the run, so that nothing acknowledged is lost; in its folder alone if absent.
        """
        self._spec, self._run_dir, self._ledger, self._log = spec, run_dir, ledger, log
        points = ledger.n_points()
        self._target = target if points is None else min(target, points)
        self._waiting = [(number, params) for number, params, _ in ledger.running()]
        self._assigned: dict[int, Assignment] = {}
        done = remedies(run_dir.glob("trials/*/attempt-*"))
        self._at_a_time = max(1, concurrent - ("concurrency" in done))
        self._lowered = -math.inf
        self._halves_batches = "micro_batch" in done
        self._needs = needs
        self._ballast, self._machines, self._grace_s = ballast, machines, grace_s
        self._error: Exception | None = None
        self._winds_down_until: float | None = None
        self._is_announced = False
        self._keeper = keeper or InPlace(run_dir)
        self._unacknowledged: list[tuple[int, TrialEnded | TrialBroke]] = []
        self.is_interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes snapshots of what it is given, and nobody reads them."""
        return {}

    def wind_down(self) -> None:
        """Begin nothing more; running trials have the grace to come to their next probe. Safe in a signal handler."""
        if self._winds_down_until is None:
            self._winds_down_until = time.monotonic() + self._grace_s

    @property
    def winds_down(self) -> bool:
        """Whether the sweep is to end."""
        return self._winds_down_until is not None

    @property
    def _is_ending(self) -> bool:
        return self.winds_down or self.is_interrupted

    def is_over(self) -> bool:
        """Whether the sweep ends now, whatever runs; to be asked at every turn."""
        with self._own_errors():
            self._acknowledge()
        if self._winds_down_until is None or self.is_interrupted:
            return self.is_interrupted
        left = self._winds_down_until - time.monotonic()
        self.is_interrupted = left <= 0.0 or not self._assigned
        if not self.is_interrupted and not self._is_announced:
            self._is_announced = True
            text = (
                f"the sweep stops: {len(self._assigned)} running trials have up to {left:.0f} s to come to a "
                "checkpoint or their next probe (--grace); a second signal ends at once, and loses nothing finished; "
                f"then go on with: unlearn-tune resume {self._run_dir}"
            )
            with self._own_errors():
                self._log.emit(Warned(text=text))
        return self.is_interrupted

    def raise_error(self) -> None:
        """Raise what ended the sweep, if it was an error of the driver's own.

        Raises:
            OSError: As the system said it, of a disk say.
            EndedError: If another driver took the run over, or the ledger's server does not come back.
            StorageError: If the storage does not take what is to be kept there.
        """
        if self._error is not None:
            raise self._error

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Within the context an error is the driver's, not the trial's: it ends the sweep."""
        try:
            yield
        except (OSError, UserError, EndedError) as err:  # raised again, when Tune has ended
            self._error = self._error or err
            self.is_interrupted = True

    def _kept(self, write: Callable[[], Written]) -> Written:
        """What a write returns that must not be lost, made in the ballast's room where the disk is full."""
        return write() if self._ballast is None else self._ballast.kept(write, told=self._pause)

    def _pause(self, err: OSError) -> None:
        """A disk is full: nothing more begins, and what runs may come to its next probe."""
        if self._error is None:
            self._log.emit(
                Warned(text=f"the disk is full ({err.filename}): no more trials are begun")
            )
        self._error = self._error or err
        self.wind_down()

    def next(self) -> Assignment | None:
        """What to run next, or ``None`` if nothing is left to begin now.

        A trial begins only when it is kept that it did: whatever its ranks commit belongs to a trial that is known.
        """
        found: Assignment | None = None
        with self._own_errors():
            self._acknowledge()
            found = self._next()
        return found

    def _next(self) -> Assignment | None:
        while not self._is_ending and len(self._assigned) < self._at_a_time:
            if self._waiting:
                number, params = self._waiting.pop(0)
            elif self._ledger.n_begun() < self._target:
                number, params = self._ledger.ask()
            else:
                return None
            trial = self._bound(number, params)
            if trial is not None:
                return self._begin(number, params, trial)
        return None

    def _bound(self, number: int, params: dict[str, Choice]) -> TrialConfig | None:
        """The trial of a proposal; one whose values do not go together is given up with the reason."""
        try:
            return bind(self._spec, params, where=f"trial {number}")
        except ConfigError as err:
            reason = str(err)
            self._kept(lambda: self._ledger.fail(number, reason))
            broke = TrialBroke(number=number, attempt=0, reason=reason, is_final=True)
            self._tell_once_kept(broke)
            return None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to begin, and nothing running could come back."""
        if self.is_interrupted:
            return True
        if self.winds_down:
            return not self._assigned
        return not self._waiting and not self._assigned and self._ledger.n_begun() >= self._target

    def take(self, number: int, probe: Probe) -> bool:
        """Record a probe; returns whether the trial ends with it, for its own sake or the sweep's."""
        ends = True
        with self._own_errors():
            ends = self._take(self._assigned[number], probe) or self.winds_down
        return ends

    def _take(self, assignment: Assignment, probe: Probe) -> bool:
        number, attempt, probes = assignment.number, assignment.attempt, assignment.probes
        assignment.unfit = probe_problem(probe, assignment.trial.selection)
        if assignment.unfit is not None:
            return True
        probes.append(probe)
        assignment.verdict = self._kept(lambda: self._ledger.report(number, attempt, probes))
        self._tell_of(assignment, probe)
        return assignment.has_ended

    def _tell_of(self, assignment: Assignment, probe: Probe) -> None:
        """Log a probe; one that an earlier attempt made was logged then."""
        number, attempt, step = assignment.number, assignment.attempt, probe.resumed_at
        if step is not None and len(assignment.probes) == 1:
            self._log.emit(TrialResumed(number=number, attempt=attempt, step=step))
        if not probe.is_carried:
            self._log.emit(TrialProbed(number=number, probe=probe))

    def finish(self, number: int) -> None:
        """Tell a trial that ended to the ledger; one that was interrupted stays as it is, or is gone on with."""
        assignment = self._assigned.pop(number, None)
        if assignment is None or self.is_interrupted:
            return
        with self._own_errors():
            if assignment.unfit is None and not assignment.has_ended:
                if not self.winds_down:
                    text = (
                        f"trial {number} has ended at a checkpoint: its machine is to be taken away"
                    )
                    self._log.emit(Warned(text=text))
                self._go_on_with(number)
                return
            self._keeper.collect(number, assignment.attempt)
            if assignment.unfit is not None:
                self._give_up(assignment, assignment.unfit, kind="UnfitProbe")
                self._tell_broken(assignment, assignment.unfit, is_final=True)
                return
            self._finish(assignment)

    def _go_on_with(self, number: int) -> None:
        params = {n: p for n, p, _ in self._ledger.running()}[number]
        self._waiting.append((number, params))

    def _finish(self, assignment: Assignment) -> None:
        duration_s = round(time.monotonic() - assignment.began, 1)
        try:
            outcome = self._kept(
                lambda: conclude_attempt(
                    self._ledger,
                    self._run_dir,
                    assignment.number,
                    assignment.attempt,
                    assignment.probes,
                    assignment.trial,
                    assignment.verdict,
                    duration_s=duration_s,
                )
            )
        except LostAdapterError as err:
            self._give_up(assignment, str(err), kind=type(err).__name__)
            self._tell_broken(assignment, str(err), is_final=True)
            return
        ended = TrialEnded(number=assignment.number, outcome=outcome)
        self._tell_once_kept(ended, f"{assignment.name}/{RESULT_FILE}")

    def _give_up(self, assignment: Assignment, reason: str, *, kind: str) -> None:
        self._kept(lambda: record_final(assignment.folder, reason, kind=kind))
        self._kept(lambda: self._ledger.fail(assignment.number, reason))
        remove_checkpoints(self._run_dir, assignment.number)

    def _tell_broken(self, assignment: Assignment, reason: str, *, is_final: bool) -> None:
        number, attempt = assignment.number, assignment.attempt
        broke = TrialBroke(number=number, attempt=attempt, reason=reason, is_final=is_final)
        self._tell_once_kept(broke, f"{assignment.name}/{FAILURE_FILE}")

    def _tell_once_kept(self, event: TrialEnded | TrialBroke, *files: str) -> None:
        """Tell of a trial's end as soon as it is kept what the ledger, and files of the run folder, say of it."""
        self._unacknowledged.append((self._keeper.promise(*files), event))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Tell of the trials that ended what is kept by now."""
        while self._unacknowledged and self._keeper.is_kept(self._unacknowledged[0][0]):
            _, event = self._unacknowledged.pop(0)
            self._log.emit(event)
            if isinstance(event, TrialEnded) or event.is_final:
                self._keeper.forget_checkpoints(event.number)

    def acknowledge_all(self) -> None:
        """Tell of all trials that ended, once it is kept; not for long if the sweep is being ended."""
        until = time.monotonic() + _LAST_WAIT_S
        with self._own_errors():
            self._keeper.secure(unless=lambda: self._is_ending and time.monotonic() > until)
            self._acknowledge()

    def broke(self, number: int) -> None:
        """An attempt ended with an error: try again, or give up with the reason."""
        assignment = self._assigned.pop(number, None)
        if assignment is None or self.is_interrupted:
            return
        with self._own_errors():
            self._keeper.collect(number, assignment.attempt)
            self._broke(assignment)

    def _broke(self, assignment: Assignment) -> None:
        failure = self._failure_of(assignment)
        if failure.kind == TIMED_OUT and assignment.probes:
            assignment.verdict = _out_of_time(self._spec, assignment.probes[-1])
            self._finish(assignment)
            return
        reason, earlier = failure.reason, _earlier_failures(assignment)
        is_final = failure.is_user_error or failure.kind == TIMED_OUT
        if failure.exhausted == "disk" and not is_final:
            self._pause(OSError(errno.ENOSPC, reason, failure.place or str(assignment.folder)))
        elif failure.lacks_memory and not is_final:
            is_final = not self._makes_room(assignment, failure, earlier)
            reason = self._explained(failure)
        if is_final or n_counted([*earlier, failure]) >= self._spec.budget.max_attempts:
            is_final = True
            self._give_up(assignment, reason, kind=failure.kind)
        else:
            self._go_on_with(assignment.number)
        self._tell_broken(assignment, reason, is_final=is_final)

    def _failure_of(self, assignment: Assignment) -> Failure:
        """Why an attempt broke, with what its own processes cannot know."""
        folder = assignment.folder
        failure = self._kept(lambda: read_failure(folder))
        if failure.is_user_error or failure.exhausted is not None or failure.kind == TIMED_OUT:
            return failure
        gone = assignment.machines.lost(self._machines())
        if failure.nodes:  # else nobody lived to say which were its own
            gone = [node for node in gone if node in failure.nodes]
        if is_full(self._error or Exception()):  # it may not have been able to say so itself
            self._kept(lambda: record_lack_of_room(folder))
        elif gone:
            self._kept(lambda: record_lost_node(folder, gone[0]))
        return read_failure(folder)

    def _explained(self, failure: Failure) -> str:
        return f"{failure.reason} ({self._needs})" if self._needs else failure.reason

    def _makes_room(self, assignment: Assignment, failure: Failure, earlier: list[Failure]) -> bool:
        """Take less memory from now on, and say so; ``False`` if this trial cannot take less."""
        before = sum(other.lacks_memory for other in earlier)
        remedy = choose_remedy(failure, assignment.trial, concurrent=self._at_a_time, before=before)
        if remedy is None:
            return False
        record_remedy(assignment.folder, remedy)
        if remedy == "concurrency" and assignment.began < self._lowered:
            return True  # it ran beside the one that was answered, in the same pack say
        if remedy == "concurrency":
            self._lowered = time.monotonic()
            self._at_a_time = max(1, self._at_a_time - 1)
            instead = f"{self._at_a_time} trials at a time from now on"
        else:
            self._halves_batches = True
            instead = "half as many rows in a forward pass from now on, gradients added up over twice as many"
        self._log.emit(Warned(text=f"trial {assignment.number} ran out of memory: {instead}"))
        return True

    def _begin(
        self, number: int, params: dict[str, Choice], trial: TrialConfig
    ) -> Assignment | None:
        """Begin an attempt; ``None`` if the sweep was ended before it was kept."""
        attempt = self._ledger.begin_attempt(number)
        home = self._keeper.home(number, attempt)
        if self._halves_batches:
            trial = halved(trial) or trial
        commit_proposal(home.folder.parent, self._ledger.proposal(number))
        commit_yaml(home.folder / TRIAL_FILE, trial.model_dump(mode="json"))
        name = attempt_folder(number, attempt)
        files = (f"{PurePath(name).parent}/{PROPOSAL_FILE}", f"{name}/{TRIAL_FILE}")
        if not self._keeper.secure(*files, unless=lambda: self._is_ending):
            return None
        assignment = Assignment(
            number=number, attempt=attempt, trial=trial, home=home, machines=self._machines()
        )
        self._assigned[number] = assignment
        self._log.emit(TrialBegan(number=number, attempt=attempt, params=dict(params)))
        return assignment


def _out_of_time(spec: SweepSpec, last: Probe) -> GuardVerdict:
    """The decision about an attempt that took too long and has probes: they count, as at the end of a budget."""
    limit_s = spec.budget.trial_timeout_s or math.nan
    return GuardVerdict(
        stopped_by="trial_timeout",
        metric="seconds",
        value=limit_s,
        limit=limit_s,
        reason=f"took longer than budget.trial_timeout_s = {limit_s:g} s; judged by its probes up to step {last.step}",
    )


def _earlier_failures(assignment: Assignment) -> list[Failure]:
    """Failures of the trial's attempts before this one."""
    folders = sorted(assignment.folder.parent.glob("attempt-*"))
    return list(known_failures(folder for folder in folders if folder != assignment.folder))
