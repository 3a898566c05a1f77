"""A driver without Ray, in a process of its own: what :mod:`tuning.sweep` does, around another executor."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import UserError
from core.store.ballast import Ballast
from core.store.durable import commit_sealed_yaml
from core.store.refusal import refusal
from faults.events import KILLED_TRIAL, Tap
from faults.shim import CallFault, Shim
from faults.study import SLOTS, reported, sweep
from faults.trial import LIVED_ON, Measure, TrialProcess, soundly
from tuning.concluding import reconcile
from tuning.config import SweepSpec
from tuning.dispatcher import Dispatcher
from tuning.driver import held_run
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.ranking import by_probes
from tuning.records import EVENTS_FILE, LEDGER_FILE, SPEC_FILE
from tuning.run import load_run
from tuning.space import bind

REFUSED, BUG = 2, 70
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_HANGS_S = 240


@dataclass(frozen=True, kw_only=True)
class Life:
    """What happens to one driver.

    Attributes:
        slots: Trials at the same time.
        killed_at: Number of the event at which it is killed; 0: at none.
        calls: What happens to its system calls, and those of its trials.
        trials_killed_at: Number of an event of an attempt's own at which its process is killed, by trial and attempt.
        outlived: Whether its trials go on when it dies.
        skew_s: Seconds that its wall clock is wrong.
        zone: Its time zone.
        measure: What its trials measure.
    """

    slots: int = SLOTS
    killed_at: int = 0
    calls: CallFault | None = None
    trials_killed_at: Mapping[tuple[int, int], int] = field(default_factory=dict)
    outlived: bool = False
    skew_s: int = 0
    zone: str = "UTC"
    measure: Measure = soundly


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a driver's life ended, and which faults fired in it.

    Attributes:
        status: Exit status; negative: the signal.
        said: What it said to the user at its end.
        events: What happened, in order: number, event, and whom it killed.
        calls: System calls counted.
        hit: The first call that a fault hit, and of which file; empty if none was.
        driver_kills: 1 if the driver was killed.
        trial_kills: Processes of trials that were killed.
        failed_calls: Calls that failed, or were cut in half.
        lived_on: Trials that outlived their driver.
    """

    status: int
    said: str
    events: tuple[str, ...]
    calls: int
    hit: str
    driver_kills: int
    trial_kills: int
    failed_calls: int
    lived_on: int

    @property
    def n_faults(self) -> int:
        """Faults that fired."""
        return self.driver_kills + self.trial_kills + self.failed_calls


@dataclass(frozen=True, kw_only=True)
class Started:
    """A driver that lives."""

    pid: int
    life: Life
    record: Path
    said: Path

    @property
    def is_living(self) -> bool:
        """Whether it has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


class Drivers:
    """Starts drivers of runs, one after the other."""

    def __init__(self, shim: Shim, scratch: Path) -> None:
        """Keep what they record in ``scratch``."""
        self._shim, self._scratch = shim, scratch
        self._living: set[int] = set()
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # trials whose driver died are waited for here

    def beside(self, scratch: Path) -> Drivers:
        """Others, at the same time."""
        others = Drivers(self._shim, scratch)
        others._living = self._living
        return others

    def warm_up(self, folder: Path) -> None:
        """Drive a small sweep here, so that each fork finds what is read and compiled once."""
        tap = Tap(count=self._shim.event, driver=os.getpid(), record=self._scratch / "events")
        drive(sweep(trials=2, steps=2), folder, Life(), tap)
        gc.collect()
        gc.freeze()  # what is not looked at is not copied

    def live(self, spec: SweepSpec, run_dir: Path, life: Life | None = None) -> Ended:
        """Let a driver begin the run, or go on with it, and end as it may.

        Its trials end before or, if it is outlived, before the next driver's life is over.
        """
        return self.wait(self.start(spec, run_dir, life))

    def start(self, spec: SweepSpec, run_dir: Path, life: Life | None = None) -> Started:
        """Start a driver."""
        life = life or Life()
        record, said = self._scratch / "events", self._scratch / "said"
        for path in (record, said):
            path.write_text("", encoding="utf-8")
        self._shim.reset(run_dir, life.calls)
        pid = os.fork()
        if pid == 0:
            status = BUG
            try:
                status = self._drive(spec, run_dir, life, record, said)
            finally:
                os._exit(status)
        self._living.add(pid)
        return Started(pid=pid, life=life, record=record, said=said)

    def wait(self, started: Started) -> Ended:
        """Wait for the end of a driver and its trials, and count what happened to it."""
        life, record, said = started.life, started.record, started.said
        _, waited = os.waitpid(started.pid, 0)
        self._living.remove(started.pid)
        if not life.outlived:
            self._bury()
        status = os.waitstatus_to_exitcode(waited)
        events = tuple(record.read_text(encoding="utf-8").splitlines())
        fates = Counter(line.rpartition("\t")[2] for line in events)
        n_hit, kills = self._shim.fired, life.calls is not None and life.calls.mode.kills
        by_call = n_hit if kills else 0
        return Ended(
            status=status,
            said=said.read_text(encoding="utf-8"),
            events=events,
            calls=self._shim.calls,
            hit=self._shim.hit,
            driver_kills=int(status == -signal.SIGKILL),
            trial_kills=fates[KILLED_TRIAL] + (by_call if status != -signal.SIGKILL else 0),
            failed_calls=n_hit - by_call,
            lived_on=self._n_outlived(),
        )

    def _n_outlived(self) -> int:
        """Trials that have outlived their driver since they were asked after."""
        path = self._scratch / LIVED_ON
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return len(lines)

    def _bury(self) -> None:
        """Wait for trials that were left; not for a driver that lives beside."""
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while left := set(map(int, children.read_text("ascii").split())) - self._living:
            os.waitpid(left.pop(), 0)

    def _drive(self, spec: SweepSpec, run_dir: Path, life: Life, record: Path, said: Path) -> int:
        """The process of a driver; its exit status. What it says is what the command line would."""
        signal.alarm(_HANGS_S)
        os.environ["TZ"] = life.zone
        time.tzset()
        tap = Tap(
            count=self._shim.event,
            driver=os.getpid(),
            kill_driver_at=life.killed_at,
            record=record,
        )
        tap.on_driver()
        self._shim.join(skew_s=life.skew_s)
        try:
            drive(spec, run_dir, life, tap)
        except UserError as err:
            said.write_text(f"error: {err}", encoding="utf-8")
            return REFUSED
        except OSError as err:
            known = refusal(err)
            said.write_text(
                f"error: {known}" if known else traceback.format_exc(), encoding="utf-8"
            )
            return REFUSED if known else BUG
        except BaseException:
            said.write_text(traceback.format_exc(), encoding="utf-8")
            return BUG
        return 0


def drive(spec: SweepSpec, run_dir: Path, life: Life, tap: Tap) -> None:
    """Bring the run to its target, as :func:`tuning.sweep.run_sweep` and ``resume_sweep`` do."""
    with held_run(run_dir):
        if is_new := not (run_dir / LEDGER_FILE).exists():
            commit_sealed_yaml(run_dir / SPEC_FILE, {"sweep": spec.plain()})
        else:
            spec = load_run(run_dir).spec
        ledger = Ledger(run_dir, spec, create=is_new)
        log = EventLog(run_dir / EVENTS_FILE, Silent())
        ballast = Ballast(run_dir)
        ledger.set_note("target", spec.budget.trials)
        ledger.set_note("ended", None)
        reconcile(spec, run_dir, ledger, log)
        dispatcher = Dispatcher(
            spec,
            run_dir,
            ledger,
            log,
            target=spec.budget.trials,
            concurrent=life.slots,
            ballast=ballast,
        )
        try:
            _execute(dispatcher, life, tap)
        finally:
            ballast.drop()
        dispatcher.raise_error()
        _measure_finalists(run_dir, ledger)
        ledger.set_note("ended", "done")


def _execute(dispatcher: Dispatcher, life: Life, tap: Tap) -> None:
    """The executor: trials in processes, asked in turn, so that a driver's events have one order."""
    running: deque[TrialProcess] = deque()
    while not dispatcher.is_over():
        while len(running) < life.slots and (assignment := dispatcher.next()) is not None:
            killed_at = life.trials_killed_at.get((assignment.number, assignment.attempt), 0)
            own = replace(tap, kill_self_at=killed_at, outlives=life.outlived)
            trial = TrialProcess(assignment, own, measure=life.measure)
            trial.advance()
            running.append(trial)
        if not running:
            break
        trial = running.popleft()
        probe = trial.probe()
        if probe is None:
            dispatcher.broke(trial.number)
        elif dispatcher.take(trial.number, probe):
            dispatcher.finish(trial.number)
        else:
            trial.advance()
            running.append(trial)
            continue
        trial.end()
    for trial in running:
        trial.end()


def _measure_finalists(run_dir: Path, ledger: Ledger) -> None:
    run = load_run(run_dir)
    for trial in by_probes(run.trials)[: run.spec.budget.finalists]:
        if trial.adapter is not None and not ledger.has_report_metrics(trial.number):
            bound = bind(run.spec, trial.params, where=f"trial {trial.number}")
            ledger.set_report_metrics(trial.number, reported(bound))
