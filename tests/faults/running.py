"""Scenarios run in several processes at once, each of which has its share of every scenario's cases."""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path

from faults.bench import Bench
from faults.driver import Drivers
from faults.scenarios import SCENARIOS
from faults.shim import Shim
from faults.tally import Tally


def run_all(
    folder: Path, *, processes: int, only: Sequence[str] = (), is_short: bool = False
) -> list[Tally]:
    """Run scenarios and give what they found, in their order.

    Args:
        folder: Where runs are made.
        processes: How many at the same time.
        only: Words; a scenario must have one of them in its name, if there are any.
        is_short: One case of each scenario.
    """
    drivers = Drivers(Shim(), folder)
    drivers.warm_up(folder / "warm")
    parts = 1 if is_short else processes
    names = [name for name in SCENARIOS if not only or any(word in name for word in only)]
    started = [_fork(folder, names, part, parts, is_short=is_short) for part in range(parts)]
    found = {name: Tally(scenario=name, what=getdoc(SCENARIOS[name]) or "") for name in names}
    for pid, result in started:
        _, status = os.waitpid(pid, 0)
        for tally in pickle.loads(result.read_bytes()):
            found[tally.scenario].add(tally)
        if status:
            problem = f"a process of the scenarios ended with {os.waitstatus_to_exitcode(status)}"
            list(found.values())[-1].problems.append(problem)
    return list(found.values())


def _fork(
    folder: Path, names: Sequence[str], part: int, parts: int, *, is_short: bool
) -> tuple[int, Path]:
    """A process that runs its share of the scenarios, and where it leaves what it found."""
    own = folder / f"part-{part}"
    own.mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            _run_part(own, names, part, parts, is_short=is_short)
        finally:
            os._exit(0)
    return pid, own / "found"


def _run_part(own: Path, names: Sequence[str], part: int, parts: int, *, is_short: bool) -> None:
    shim = Shim()
    shim.separate()
    bench = Bench(folder=own, drivers=Drivers(shim, own), part=part, parts=parts, is_short=is_short)
    tallies = [Tally(scenario=name) for name in names]
    for tally in tallies:
        began = time.monotonic()
        try:
            SCENARIOS[tally.scenario](bench, tally)
        except Exception:  # of the scenario itself: the others are run all the same
            tally.problems.append(traceback.format_exc())
        took = f"{tally.n_faults} faults, {time.monotonic() - began:.0f} s"
        sys.stderr.write(f"{tally.scenario}, part {part + 1} of {parts}: {took}\n")
        (own / "found").write_bytes(pickle.dumps(tallies))
