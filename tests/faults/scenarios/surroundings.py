"""A disk that is full, a clock that is wrong, a second driver."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.bench import Bench
from faults.driver import REFUSED, Life
from faults.study import sweep
from faults.tally import Tally
from faults.trial import soundly
from tuning.dispatcher import Assignment

_HOUR = 3600
_ROOM_KIB = (4, 40, 150, 200, 260, 400)
"""Free space when a driver begins, or goes on; a ledger takes about 150."""


def full_disk(bench: Bench, tally: Tally) -> None:
    """A small disk with a filler on it gets full; the filler is removed before the resume."""
    if os.geteuid() != 0:
        tally.skipped = "mounting a small disk needs root"
        return
    spec = sweep(trials=4, steps=3)
    for index in bench.mine(0, 2 * len(_ROOM_KIB) - 1):
        room, has_begun = _ROOM_KIB[index // 2], bool(index % 2)
        with bench.case(spec, tally, f"{room} KiB free{', resumed' * has_begun}") as case:
            try:
                with _small_disk(case.run_dir):
                    if has_begun:
                        case.live(Life(killed_at=60))
                    filler = case.run_dir / "filler"
                    _fill(filler, leave=room * 1024)
                    ended = case.live(Life())
                    case.witness.fault(ended.status == REFUSED)
                    filler.unlink(missing_ok=True)
                    case.finish()
            except subprocess.CalledProcessError as err:
                tally.skipped = f"no small disk can be mounted here: {err.stderr.strip()}"
                return


@contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _fill(filler: Path, *, leave: int) -> None:
    found = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - leave))


def wrong_clock(bench: Bench, tally: Tally) -> None:
    """The clock is set back or forward, or the time zone changes, between a killed driver and the next one."""
    spec = sweep(trials=4, steps=3)
    changes = [
        (Life(killed_at=90, skew_s=2 * _HOUR), Life()),
        (Life(killed_at=90, skew_s=-2 * _HOUR), Life()),
        (Life(killed_at=90, skew_s=_HOUR, zone="Europe/Berlin"), Life(zone="Europe/Berlin")),
        (Life(killed_at=90, zone="Pacific/Kiritimati"), Life(zone="Pacific/Pago_Pago")),
    ]
    for index in bench.mine(0, len(changes) - 1):
        before, after = changes[index]
        with bench.case(spec, tally, f"change {index}") as case:
            case.live(before)
            case.finish(after)
            case.witness.fault()


def second_driver(bench: Bench, tally: Tally) -> None:
    """While a driver drives a run, a second one is refused with the name of the first."""
    spec = sweep(trials=4, steps=3)
    scratch = bench.folder / "second"
    scratch.mkdir()
    gate, waits = scratch / "gate", scratch / "waits"
    for number in bench.mine(0, 3):
        for sign in (gate, waits):
            sign.unlink(missing_ok=True)

        def measure(assignment: Assignment, step: int, number: int = number) -> Mapping[str, Any]:
            while assignment.number == number and step == 1 and not gate.exists():
                waits.touch()
                time.sleep(0.01)
            return soundly(assignment, step)

        with bench.case(spec, tally, f"at trial {number}") as case:
            first = case.drivers.start(spec, case.run_dir, Life(measure=measure))
            while not waits.exists():
                assert first.is_living, case.drivers.wait(first)
                time.sleep(0.01)
            ended = case.drivers.beside(scratch).live(spec, case.run_dir)
            expected = f"another driver holds this run (pid {first.pid} "
            if ended.status != REFUSED or expected not in ended.said:
                case.witness.problem(f"the second ended with {ended.status}: {ended.said}")
            case.witness.fault()
            gate.touch()
            case.witness.look(case.drivers.wait(first))
            case.finish()


SCENARIOS: Mapping[str, Callable[[Bench, Tally], None]] = {
    "full disk": full_disk,
    "wrong clock": wrong_clock,
    "second driver": second_driver,
}
