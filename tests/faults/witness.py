"""Who looks at a run between its drivers, and says what does not hold.

The invariants: (1) an acknowledged result is in the ledger to the end, as it was; (2) a trial is told once; (3) the
trials are those of a run without faults, with the same verdicts; (4) no more is done again than the faults cost;
(5) what counts is the latest attempt's own; (6) a resume gets to the end without help; (7) a driver that gives up
says which file, and what to do.
"""

from __future__ import annotations

import math
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from driven_sweep import conclusions

from core.errors import UserError
from core.store.durable import finite, read_lines
from core.store.texts import read_json
from faults.driver import REFUSED, Ended
from faults.study import SLOTS, adapter_bytes
from faults.tally import Tally
from tuning.committed import committed_probes
from tuning.concluding import SAVED_LAST
from tuning.config import SweepSpec
from tuning.records import EVENTS_FILE, LEDGER_FILE, TrialRecord, attempt_folder, read_ledger
from tuning.run import Run, load_run
from tuning.space import bind

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
"""States of a trial that was told."""
_OF_FINALISTS = ("report_metrics", "report_intervals")
"""What is added to a trial after it was told."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """The same sweep without faults.

    Attributes:
        spec: The sweep.
        concluded: What it proposed and concluded, trial by trial.
        finalists: What these measured.
        events: What its driver and its trials did.
        n_calls: System calls that wrote.
    """

    spec: SweepSpec
    concluded: tuple[dict[str, Any], ...]
    finalists: dict[int, Any]
    events: tuple[str, ...]
    n_calls: int

    @classmethod
    def of(cls, run_dir: Path, spec: SweepSpec, ended: Ended) -> Control:
        """From its run folder, and how its driver ended."""
        trials, _driver = read_ledger(run_dir / LEDGER_FILE)
        return cls(
            spec=spec,
            concluded=tuple(conclusions(run_dir)),
            finalists=finalists_of(trials),
            events=ended.events,
            n_calls=ended.calls,
        )


class Witness:
    """Looks at one run after each of its drivers, and at its end."""

    def __init__(self, run_dir: Path, control: Control, tally: Tally, *, case: str) -> None:
        """Add what is found to ``tally``, with the name of the case."""
        self._run_dir, self._control, self._tally, self._case = run_dir, control, tally, case
        self._told: dict[int, dict[str, Any]] = {}
        self._results: dict[int, dict[str, Any]] = {}
        self._spoiled: dict[int, str] = {}
        self._n_faults = 0
        tally.runs += 1

    def spoils(self, number: int, *, said: str = "") -> None:
        """A fault makes a trial another than that of the control: it must be told, and be no candidate for the best.

        Args:
            number: The trial.
            said: What its reason must say, if it fails.
        """
        self._spoiled[number] = said

    def fault(self, count: int = 1) -> None:
        """Count faults that are neither kills nor failed calls, and were seen to fire."""
        self._tally.other_faults += count
        self._n_faults += count

    def problem(self, text: str) -> None:
        """Note what does not hold."""
        self._tally.problems.append(f"{self._case}: {text}")

    def look(self, ended: Ended) -> None:
        """After a driver's end: count its faults, hear what it said, and see what it acknowledged."""
        tally = self._tally
        tally.driver_kills += ended.driver_kills
        tally.trial_kills += ended.trial_kills
        tally.failed_calls += ended.failed_calls
        self._n_faults += ended.n_faults
        if ended.status not in (0, -signal.SIGKILL):
            tally.refused += 1
            if ended.status != REFUSED or not ended.said.startswith("error: "):
                after = f" after {ended.hit}" if ended.hit else ""
                self.problem(f"the driver ended with {ended.status}{after}: {ended.said[-2500:]}")
        self.see()

    def see(self) -> None:
        """What a person who looks now is shown."""
        if (self._run_dir / LEDGER_FILE).exists():
            try:
                self._see()
            except UserError as err:
                self.problem(f"the run cannot be read: {err}")

    def _see(self) -> None:
        """Look at a copy, so that the run stays as it was left."""
        with TemporaryDirectory(dir=self._run_dir.parent) as folder:
            copy = Path(folder) / "run"
            shutil.copytree(self._run_dir, copy)
            trials, _driver = read_ledger(copy / LEDGER_FILE)
            with closing(sqlite3.connect(copy / LEDGER_FILE)) as database:
                (sound,) = database.execute("PRAGMA integrity_check").fetchone()
                at = dict(database.execute("SELECT number, datetime_complete FROM trials"))
            results = {path.parent: read_json(path) for path in copy.glob("trials/*/*/result.json")}
        if sound != "ok":
            self.problem(f"the ledger is damaged: {sound}")
        self._results |= {record["number"]: record for record in results.values()}
        told = {t.number: _told(t) | {"at": at[t.number]} for t in trials if t.state in FINISHED}
        for number, record in self._told.items():
            if number not in told:
                self._tally.lost += 1
                self.problem(f"trial {number} was told and is no longer")
            elif told[number] != record:
                self._tally.twice += 1
                self.problem(f"trial {number} was told {record}, and then {told[number]}")
        self._told |= told

    def end(self, ended: Ended) -> None:
        """After the last driver, which nothing hindered: it finished what a run without faults finishes."""
        self.look(ended)
        if ended.status != 0:
            self.problem(f"a resume does not get to the end: {ended.status}: {ended.said[-2500:]}")
            return
        run = load_run(self._run_dir)
        if run.state != "done":
            self.problem(f"the run is {run.state} at the end")
        for number, record in self._results.items():
            now = run.trials[number]
            if (now.state, now.value) != (record["state"], record["value"]):
                self._tally.lost += 1
                self.problem(f"trial {number} committed {record['value']}, and is told {now.value}")
        self._compare(run)
        for trial in run.trials:
            if problem := self._own_work(trial):
                self.problem(f"trial {trial.number}: {problem}")
        self._count_work(run)

    def _compare(self, run: Run) -> None:
        """With the run without faults."""
        found = conclusions(self._run_dir)
        for number, expected in enumerate(self._control.concluded):
            if number in self._spoiled:
                self._judge_spoiled(run.trials[number], found[number] == expected)
            elif number >= len(found) or found[number] != expected:
                self._tally.lost += 1
                now = found[number] if number < len(found) else None
                self.problem(f"trial {number} is not that of the control: {now} != {expected}")
        if len(found) > len(self._control.concluded):
            self.problem(f"{len(found)} trials, {len(self._control.concluded)} in the control")
        self._compare_finalists(finalists_of(run.trials))
        told = Counter(
            line["number"]
            for line in read_lines(self._run_dir / EVENTS_FILE)
            if line["event"] == "TrialEnded"
        )
        for number, times in told.items():
            if times > 1:
                self._tally.twice += 1
                self.problem(f"trial {number} was told {times} times")

    def _compare_finalists(self, found: dict[int, Any]) -> None:
        """With those of the control; where a spoiled trial was among them, another one took its place."""
        expected = self._control.finalists
        if not self._spoiled.keys().isdisjoint(expected):
            expected = {n: expected[n] for n in expected.keys() - self._spoiled.keys()}
            found = {n: found[n] for n in found.keys() & expected.keys()}
        if found != expected:
            self.problem(f"the finalists are not those of the control: {found} != {expected}")

    def _judge_spoiled(self, trial: TrialRecord, is_as_ever: bool) -> None:
        """A trial that could not go as that of the control."""
        if is_as_ever:
            self.problem(f"trial {trial.number} did not meet its fault")
        elif trial.state not in FINISHED or not trial.reason:
            self.problem(f"trial {trial.number} is {trial.state} because of {trial.reason}")
        elif self._spoiled[trial.number] not in str(trial.reason):
            self.problem(f"trial {trial.number} says: {trial.reason}")
        elif trial.value is not None and not math.isfinite(trial.value):
            self.problem(f"trial {trial.number} has the value {trial.value}")
        else:
            self.fault()

    def _own_work(self, trial: TrialRecord) -> str | None:
        """What is wrong with what a trial's latest attempt left, of which it was judged."""
        if trial.state == "FAIL":
            return None
        folder = self._run_dir / attempt_folder(trial.number, trial.attempt)
        bound = bind(self._control.spec, trial.params, where="a trial")
        probes = committed_probes(folder)
        if not probes or probes[-1].step != trial.steps:
            return (
                f"its history ends at {probes[-1].step if probes else None}, not at {trial.steps}"
            )
        if trial.adapter != f"{attempt_folder(trial.number, trial.attempt)}/adapter":
            return None if trial.adapter is None else f"its adapter is {trial.adapter}"
        weights = (self._run_dir / trial.adapter / SAVED_LAST[0]).read_bytes()
        assert trial.step is not None
        return (
            None if weights == adapter_bytes(bound, trial.step) else "its adapter is another step's"
        )

    def _count_work(self, run: Run) -> None:
        """Steps that were made again, and attempts that no fault explains."""
        attempts = list(self._run_dir.glob("trials/*/attempt-*"))
        most = len(run.trials) + SLOTS * self._n_faults
        if len(attempts) > most:
            self.problem(f"{len(attempts)} attempts, at most {most} are explained by faults")
        last = {self._run_dir / attempt_folder(t.number, t.attempt) for t in run.trials}
        for folder in set(attempts) - last:
            with suppress(UserError):  # of a damaged history nobody knows
                self._tally.repeated_steps += len(committed_probes(folder))


def _told(trial: TrialRecord) -> dict[str, Any]:
    """What is said of a trial once; finalists are measured later."""
    found: dict[str, Any] = finite(asdict(trial))  # NaN is not equal to itself
    return {k: v for k, v in found.items() if k not in _OF_FINALISTS}


def finalists_of(trials: Sequence[TrialRecord]) -> dict[int, Any]:
    """What finalists measured, by number."""
    return {t.number: t.report_metrics for t in trials if t.report_metrics is not None}
