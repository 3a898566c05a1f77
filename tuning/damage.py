"""Files of a run folder that figures and the report can go without: read if they are whole, and named if they are not.

The ledger and the sweep are no such files: without them nothing can be said, so they are refused where they are read.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from core.errors import FileError
from core.store.durable import read_lines
from tuning.records import EVENTS_FILE
from tuning.run import Run
from tuning.samples import Samples, read_samples


def whole_history(run: Run, number: int) -> list[dict[str, Any]]:
    """History lines of a trial's latest attempt; none where its file is damaged."""
    try:
        return run.history(number)
    except FileError:
        return []


def whole_events(run: Run) -> list[dict[str, Any]]:
    """Events of a run; none where the log is damaged."""
    try:
        return read_lines(run.path / EVENTS_FILE)
    except FileError:
        return []


def whole_samples(run: Run) -> Samples | None:
    """Samples of a run; ``None`` where there are none, or their file is damaged."""
    try:
        return read_samples(run.path)
    except FileError:
        return None


def left_out(run: Run) -> list[str]:
    """What figures and the report go without because its file is damaged: a line for each."""
    reads: dict[str, Callable[[], object]] = {
        f"the curves of trial {t.number}": partial(run.history, t.number)
        for t in run.trials
        if t.attempt
    }
    reads["the timeline"] = lambda: read_lines(run.path / EVENTS_FILE)
    reads["the samples"] = lambda: read_samples(run.path)
    found = []
    for what, read in reads.items():
        try:
            read()
        except FileError as err:
            found.append(f"without {what}: {err}")
    return found
