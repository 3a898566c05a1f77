"""Door to ray and optuna together: Tune asks the ledger what to run, and the ledger says when to stop.

Tune only executes. Its searcher hands out what the ledger wants run (interrupted trials first, then new
ones); its scheduler reports each probe to the ledger and obeys the pruner. Neither keeps state that a
crash could lose.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from core.config import TrialConfig
from core.errors import ConfigError, FileError
from core.measuring.selection import GuardVerdict, Probe
from core.store.durable import commit_json, commit_yaml, finite
from tuning.config import Choice, SweepSpec
from tuning.events import EventLog, TrialBegan, TrialBroke, TrialEnded, TrialProbed, Warned
from tuning.failures import (
    FAILURE_FILE,
    Failure,
    choose_remedy,
    halved,
    read_failure,
    record_remedy,
    remedies,
)
from tuning.handing_out import HandedOut
from tuning.ledger import Ledger
from tuning.objective import Outcome, conclude
from tuning.packing import PACK
from tuning.records import attempt_folder, history_lines
from tuning.space import bind
from tuning.trainable import PROBE

SAVED_LAST = ("adapter_model.safetensors", "config.json")
"""What a saved adapter, or a whole model, has when it is complete."""
NUMBER = "number"


class LostAdapterError(Exception):
    """A worker committed its best adapter, and it is not there.

    Args:
        folder: Where it should be.
    """

    def __init__(self, folder: Path) -> None:
        """Say where, and what to look at."""
        super().__init__(
            f"its best probe is feasible, but {folder} holds no adapter: the run folder is not the one that the "
            "worker writes to; put it on storage that all nodes share"
        )


@dataclass
class Assignment:
    """A trial handed to Tune."""

    number: int
    attempt: int
    trial: TrialConfig
    folder: Path
    probes: list[Probe] = field(default_factory=list)
    verdict: GuardVerdict | None = None
    began: float = field(default_factory=time.monotonic)


class Dispatcher:
    """Decides what runs next and what a finished trial is told. One for a driver's life."""

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
        self.is_interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes snapshots of what it is given, and nobody reads them."""
        return {}

    def next(self) -> Assignment | None:
        """What to run next, or ``None`` if nothing is left to begin now."""
        while not self.is_interrupted and len(self._assigned) < self._at_a_time:
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
            self._ledger.fail(number, str(err))
            self._log.emit(TrialBroke(number=number, attempt=0, reason=str(err), is_final=True))
            return None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to begin, and nothing running could come back."""
        if self.is_interrupted:
            return True
        return not self._waiting and not self._assigned and self._ledger.n_begun() >= self._target

    def take(self, number: int, probe: Probe) -> bool:
        """Record a probe; returns whether the trial ends with it."""
        assignment = self._assigned[number]
        assignment.probes.append(probe)
        verdict = self._ledger.report(number, assignment.attempt, assignment.probes)
        self._log.emit(TrialProbed(number=number, probe=probe))
        if verdict is not None:
            assignment.verdict = verdict
        return verdict is not None or probe.stopped_by is not None

    def finish(self, number: int) -> None:
        """Tell a trial that ended to the ledger; one that was interrupted stays as it is."""
        assignment = self._assigned.pop(number, None)
        if assignment is None or self.is_interrupted:
            return
        ended = assignment.verdict is not None or (
            assignment.probes and assignment.probes[-1].stopped_by is not None
        )
        if not ended:
            return
        try:
            outcome = conclude_attempt(
                self._ledger,
                self._run_dir,
                number,
                assignment.attempt,
                assignment.probes,
                assignment.trial,
                assignment.verdict,
                duration_s=round(time.monotonic() - assignment.began, 1),
            )
        except LostAdapterError as err:
            self._give_up(number, assignment.attempt, str(err))
            return
        self._log.emit(TrialEnded(number=number, outcome=outcome))

    def _give_up(self, number: int, attempt: int, reason: str) -> None:
        self._ledger.fail(number, reason)
        self._log.emit(TrialBroke(number=number, attempt=attempt, reason=reason, is_final=True))

    def broke(self, number: int) -> None:
        """An attempt ended with an error: try again, or give up with the reason."""
        assignment = self._assigned.pop(number, None)
        if assignment is None or self.is_interrupted:
            return
        failure = read_failure(assignment.folder)
        reason, is_final = failure.reason, failure.is_user_error
        earlier = _earlier_failures(assignment)
        if failure.exhausted is not None and not is_final:
            is_final, reason = (
                not self._makes_room(assignment, failure, earlier),
                self._explained(failure),
            )
        if is_final or len(earlier) + 1 >= self._spec.budget.max_attempts:
            is_final = True
            self._ledger.fail(number, reason)
        else:
            params = {n: p for n, p, _ in self._ledger.running()}[number]
            self._waiting.append((number, params))
        self._log.emit(
            TrialBroke(number=number, attempt=assignment.attempt, reason=reason, is_final=is_final)
        )

    def _explained(self, failure: Failure) -> str:
        return f"{failure.reason} ({self._needs})" if self._needs else failure.reason

    def _makes_room(self, assignment: Assignment, failure: Failure, earlier: list[Failure]) -> bool:
        """Take less memory from now on, and say so; ``False`` if this trial cannot take less."""
        before = sum(other.exhausted is not None for other in earlier)
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

    def _begin(self, number: int, params: dict[str, Choice], trial: TrialConfig) -> Assignment:
        attempt = self._ledger.begin_attempt(number)
        folder = (
            self._run_dir / attempt_folder(number, attempt)
        ).resolve()  # Tune changes directories
        if self._halves_batches:
            trial = halved(trial) or trial
        commit_yaml(folder / "trial.yaml", trial.model_dump(mode="json"))
        assignment = Assignment(number=number, attempt=attempt, trial=trial, folder=folder)
        self._assigned[number] = assignment
        self._log.emit(TrialBegan(number=number, attempt=attempt, params=dict(params)))
        return assignment


def reconcile(spec: SweepSpec, run_dir: Path, ledger: Ledger, log: EventLog) -> None:
    """Adopt what interrupted trials committed before their driver died.

    The committed history of each running trial is replayed through guard and pruner. A trial that had
    ended, or would have been stopped, is told; the others run again under the same number.
    """
    ledger.finish_births()
    for number, params, attempt in ledger.running():
        if attempt == 0:
            continue
        trial = bind(spec, params, where=f"trial {number}")
        folder = run_dir / attempt_folder(number, attempt)
        seen: list[Probe] = []
        verdict: GuardVerdict | None = None
        for probe in _adoptable(trial, number, folder, log):
            seen.append(probe)
            verdict = ledger.report(number, attempt, seen)
            if verdict is not None or probe.stopped_by is not None:
                with suppress(LostAdapterError):  # then it runs again
                    outcome = conclude_attempt(
                        ledger,
                        run_dir,
                        number,
                        attempt,
                        seen,
                        trial,
                        verdict,
                        duration_s=probe.seconds,
                    )
                    log.emit(TrialEnded(number=number, outcome=outcome, adopted=True))
                break


def _adoptable(trial: TrialConfig, number: int, folder: Path, log: EventLog) -> list[Probe]:
    """The probes that an attempt committed; of a damaged history none, and it is said that the trial runs again."""
    needed = {trial.selection.metric, "forget_nll", *trial.selection.limited_metrics}
    try:
        found = committed_probes(folder)
        for probe in found:
            lacking = needed - probe.metrics.keys()
            if lacking:
                problem = f"step {probe.step}: metrics: {min(lacking)} must be there, got none"
                raise FileError(str(folder / "history.jsonl"), problem)
        return found
    except FileError as err:
        log.emit(Warned(text=f"trial {number} runs again, nothing of this attempt is taken: {err}"))
        return []


def committed_probes(folder: Path) -> list[Probe]:
    """The probes that an attempt committed, in order, without the untouched model's.

    Raises:
        FileError: If its history is damaged.
    """
    return [_committed(line) for line in history_lines(folder) if line["step"] > 0]


def _committed(line: Mapping[str, Any]) -> Probe:
    """The probe of a history line; what it landed on says again only what was measured there."""
    landed = line.get("landed")
    return Probe(
        step=line["step"],
        metrics={name: float(value) for name, value in line["metrics"].items()},
        seconds=float(line.get("seconds") or 0.0),
        stopped_by=line.get("stopped_by"),
        intervals={
            name: (low, high) for name, (low, high) in (line.get("intervals") or {}).items()
        },
        skipped=tuple(line.get("skipped") or ()),
        n_rows=line.get("n_rows") or {},
        is_overtaken=bool(line.get("is_overtaken")),
        landed=None if landed is None else _committed({**line, **landed, "landed": None}),
    )


def conclude_attempt(
    ledger: Ledger,
    run_dir: Path,
    number: int,
    attempt: int,
    probes: list[Probe],
    trial: TrialConfig,
    verdict: GuardVerdict | None,
    *,
    duration_s: float,
) -> Outcome:
    """Commit ``result.json`` of an ended attempt, then tell the ledger.

    Raises:
        LostAdapterError: If the probe that counts is feasible and its adapter is not in the run folder.
    """
    outcome = conclude(probes, trial.selection, verdict)
    folder = attempt_folder(number, attempt)
    saved = run_dir / folder / "adapter"
    is_saved = any((saved / name).is_file() for name in SAVED_LAST)
    if outcome.feasible and not is_saved:
        raise LostAdapterError(saved)
    adapter = f"{folder}/adapter" if outcome.feasible else None
    record = {
        "number": number,
        "attempt": attempt,
        **asdict(outcome),
        "adapter": adapter,
        "duration_s": duration_s,
    }
    commit_json(run_dir / folder / "result.json", finite(record))
    ledger.finish(number, outcome, adapter=adapter, duration_s=duration_s)
    return outcome


class LedgerSearcher(Searcher):
    """Tune's question "what next?", answered by the dispatcher."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        resources: Any,
        handed_out: HandedOut | None = None,
        *,
        packs: Collection[str] = (),
    ) -> None:
        """Answer from ``dispatcher``; ranks get what is ``handed_out``; trials are spread over ``packs``, if any."""
        super().__init__()
        self._dispatcher, self._resources = dispatcher, resources
        self._handed_out = handed_out
        self._numbers: dict[str, int] = {}
        self._packs, self._in_pack = tuple(packs), dict[str, str]()

    def suggest(  # type: ignore[override]  # the base class's type forgets FINISHED
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next assignment, ``None`` while only running trials are left, or the end."""
        assignment = self._dispatcher.next()
        if assignment is None:
            return Searcher.FINISHED if self._dispatcher.is_done else None
        self._numbers[trial_id] = assignment.number
        config = {
            NUMBER: assignment.number,
            "trial": assignment.trial,
            "folder": str(assignment.folder),
            "resources": self._resources,
            "handed_out": self._handed_out,
        }
        if self._packs:
            filled = Counter(self._in_pack.values())
            self._in_pack[trial_id] = min(self._packs, key=lambda name: filled[name])
            config[PACK] = self._in_pack[trial_id]
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended, or its attempt broke."""
        number = self._numbers.pop(trial_id)
        self._in_pack.pop(trial_id, None)
        if error:
            self._dispatcher.broke(number)
        else:
            self._dispatcher.finish(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the truth."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class LedgerScheduler(FIFOScheduler):
    """Reports each probe to the ledger and obeys it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Report to ``dispatcher``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._dispatcher = dispatcher

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop when the pruner says so, or the trial ended by its own rules."""
        ends = self._dispatcher.take(trial.config[NUMBER], result[PROBE])
        decision: str = TrialScheduler.STOP if ends else TrialScheduler.CONTINUE
        return decision


class InterruptStopper(Stopper):
    """Ends Tune's loop when a signal asked for it."""

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        """Ask ``is_asked`` at every turn."""
        self._is_asked = is_asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's business."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        return self._is_asked()


def _earlier_failures(assignment: Assignment) -> list[Failure]:
    """Failures of the trial's attempts before this one."""
    folders = sorted(assignment.folder.parent.glob("attempt-*"))
    return [
        read_failure(folder)
        for folder in folders
        if folder != assignment.folder and (folder / FAILURE_FILE).is_file()
    ]
