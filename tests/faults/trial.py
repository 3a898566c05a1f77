"""A trial in a process of its own: it commits adapter and history as the worker does, then tells its driver."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

from core.measuring.extent import Extent
from core.measuring.history import History
from core.measuring.probing import Measurement
from core.measuring.selection import Probe
from core.store.durable import commit, commit_json
from core.store.told import ToldError, refuse_told
from faults.events import Tap
from faults.study import adapter_bytes, before, measured
from tuning.concluding import SAVED_LAST
from tuning.dispatcher import Assignment
from tuning.trainable import record_failure

Measure = Callable[[Assignment, int], Mapping[str, Any]]
"""What an attempt measures after a number of steps."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
LIVED_ON = "lived-on"
"""File beside the record of events, to which a trial adds a line that has outlived its driver and committed all."""
_HANGS_S = 240
Word = Literal["advance", "end"]


def soundly(assignment: Assignment, step: int) -> Mapping[str, Any]:
    """What an attempt measures with which nothing is wrong."""
    return measured(assignment.trial, step)


class TrialProcess:
    """A driver's side of a trial."""

    def __init__(self, assignment: Assignment, tap: Tap, *, measure: Measure = soundly) -> None:
        """Fork it.

        Args:
            assignment: The trial, and the folder of its attempt.
            tap: Counts its events.
            measure: What it measures.
        """
        self.number = assignment.number
        self._pipe: Connection[Word, Probe | None]
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _run(assignment, tap, theirs, measure)
            finally:
                os._exit(1)
        theirs.close()

    def advance(self) -> None:
        """Ask for the next probe."""
        with suppress(OSError):  # it died: whoever waits for the probe is told
            self._pipe.send("advance")

    def probe(self) -> Probe | None:
        """The probe that was asked for; ``None`` if the attempt broke."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._pipe.send("end")
        self._pipe.close()
        os.waitpid(self._pid, 0)


def _run(
    assignment: Assignment,
    tap: Tap,
    pipe: Connection[Probe | None, Word],
    measure: Measure,
) -> None:
    """The process of a trial, to its end."""
    signal.alarm(_HANGS_S)
    if not tap.outlives:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.closerange(3, pipe.fileno())  # the driver's lock and its ledger are not the trial's
    os.closerange(pipe.fileno() + 1, 256)
    tap.on_trial()
    steps = _steps(assignment, tap, measure)
    try:
        while (word := _heard(pipe)) == "advance":
            probe = next(steps)
            with suppress(OSError):  # nobody listens: the next word says so
                pipe.send(probe)
        if word is None and tap.outlives:
            _live_on(assignment.folder, steps, tap.record.with_name(LIVED_ON))
    except Exception as err:
        record_failure(assignment.home, err, kernel_killed=False)
        pipe.send(None)
    os._exit(0)


def _heard(pipe: Connection[Probe | None, Word]) -> Word | None:
    """What the driver says; ``None`` if it is dead."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _steps(assignment: Assignment, tap: Tap, measure: Measure) -> Iterator[Probe]:
    """As :func:`core.worker.probes`: the adapter is on disk before the probe's line, that before the probe is told."""
    config, folder = assignment.trial, assignment.folder
    history = History(
        config.selection,
        before(),
        folder,
        extent=Extent(adaptive=False, skips=False),
        started=time.monotonic(),
    )
    history.begin(initial_rms=(0.0, 0.0), base_checksum="0")
    for step in range(1, config.selection.max_steps + 1):
        metrics = measure(assignment, step)
        found = Measurement(metrics=metrics, intervals={}, n_rows={}, sums={})
        probe = history.judge(step, found, is_last=step == config.selection.max_steps)
        refuse_told(folder)
        if history.best is not None and history.is_best(probe):
            tap.at("before commit of the adapter")
            _save(folder / "adapter", adapter_bytes(config, step))
            tap.at("after commit of the adapter")
        history.commit(probe)
        yield probe
        if probe.stopped_by is not None:
            return


def _save(folder: Path, weights: bytes) -> None:
    """As :func:`core.training.adapter.save_adapter`: one file after the other, weights last."""

    def write(path: Path) -> None:
        path.write_bytes(weights)

    commit_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    commit(folder / SAVED_LAST[0], write)


def _live_on(folder: Path, steps: Iterator[Probe], record: Path) -> None:
    """Commit what is left of an attempt when its trial has a later one, or was told: nobody asked for it.

    Beside a later attempt it may, and does not count; what was told it leaves alone, as the worker does.
    """
    deadline = time.monotonic() + _HANGS_S
    while not _is_over(folder) and time.monotonic() < deadline:
        time.sleep(0.002)
    n_committed = 0
    with suppress(ToldError):
        for _ in steps:
            n_committed += 1
    with record.open("a", encoding="utf-8") as file:
        file.write(f"{folder}\t{n_committed}\n")


def _is_over(folder: Path) -> bool:
    return (folder / "result.json").exists() or len(list(folder.parent.glob("attempt-*"))) > 1
