"""What looks at a run folder, and the beginning of a resume up to where Ray would start."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mutation.judging import Ending, as_nobody, of_call, of_command

from tuning.concluding import reconcile
from tuning.dispatcher import Dispatcher
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.records import EVENTS_FILE
from tuning.run import load_run
from tuning.sameness import model_folders, refuse_other_contents

_READERS: tuple[tuple[str, ...], ...] = (
    ("status",), ("status", "--json"), ("best",), ("best", "--json"), ("best", "--format", "csv"), ("show", "0"),
    ("show", "8", "--json"), ("show", "best"), ("advise",), ("compare",), ("export",),
)  # fmt: skip
_SAVED = ("0", "2", "3", "7")
"""Trials that have an adapter."""


def looked_at(
    run: Path, other: Path, *, seed: int, with_report: bool, is_closed: bool = False
) -> Iterator[tuple[str, Ending]]:
    """Every verb on a run folder, by name; ``resume`` comes last, because it writes.

    ``repair`` mends a copy of it, every other time without the ledger.

    Args:
        run: The damaged folder.
        other: A whole one, to be compared with.
        seed: Says which trials are shown.
        is_closed: Something of it may not be read, also if we are root.
        with_report: Also write the report, which takes seconds.
    """
    rng = random.Random(seed)
    number, saved = rng.randrange(9), rng.choice(_SAVED)
    out = run.with_name(f"{run.name}-export")
    names = (run.name, "trial ", "TRIAL: ")
    lost = run.with_name(f"{run.name}-lost")
    subprocess.run(["cp", "-a", str(run), str(lost)], check=True)  # pipes and links, too
    if seed % 2:
        for path in lost.glob("ledger.db*"):
            path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)
    with as_nobody() if is_closed else contextlib.nullcontext():
        for verb, *options in (*_READERS, ("show", str(number)), ("export", "--trial", saved)):
            arguments: list[object] = [verb, run, *options]
            if verb == "compare":
                arguments = [verb, other, run]
            elif verb == "export":
                arguments += ["--out", out]
            yield " ".join([verb, *options]), of_command(*arguments, names=names)
            shutil.rmtree(out, ignore_errors=True)
        if with_report:
            yield "report", of_command("report", run, names=names)
        yield "repair", of_command("repair", lost, names=(lost.name, *names[1:]))
        yield "resume", of_call(lambda: begin_again(run), names=names)
    shutil.rmtree(lost)


def begin_again(path: Path) -> None:
    """What ``resume`` does with a run folder, but for Ray: read, refuse, adopt, hand out."""
    run = load_run(path)
    refuse_other_contents({}, model_folders(run.spec), path)
    ledger = Ledger(path, run.spec, create=False)
    log = EventLog(path / EVENTS_FILE, Silent())
    ledger.n_points()
    reconcile(run.spec, path, ledger, log)
    dispatcher = Dispatcher(run.spec, path, ledger, log, target=run.target)
    while (assignment := dispatcher.next()) is not None:
        dispatcher.broke(assignment.number)
