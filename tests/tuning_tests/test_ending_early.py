"""What ends a sweep or an attempt before its time: a signal, a full disk, a machine taken away, a limit of time."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from analytic_study import spec_of
from driven_sweep import conclusions, drive, unsynced, work

from core.measuring.selection import Probe
from core.store.ballast import BALLAST_BYTES, BALLAST_FILE, Ballast
from tuning.concluding import reconcile
from tuning.config import SweepSpec
from tuning.dispatcher import Assignment, Dispatcher
from tuning.events import EventLog, Silent
from tuning.failures import MOST_LOST, Machines, read_failure, record_final
from tuning.ledger import Ledger
from tuning.limits import HungRankError, TrialTimeoutError
from tuning.records import LEDGER_FILE, read_ledger
from tuning.trainable import record_failure

SPEC = spec_of(budget={"trials": 3, "max_steps": 3}, pruning={"retain": None})
NO_ROOM = OSError(errno.ENOSPC, "No space left on device", "/scratch/x")


def opened(run_dir: Path, spec: SweepSpec = SPEC, **options: Any) -> tuple[Dispatcher, Ledger]:
    """A driver's dispatcher on a run, new or begun."""
    run_dir.mkdir(exist_ok=True)
    ledger = Ledger(run_dir, spec, create=not (run_dir / LEDGER_FILE).exists())
    log = EventLog(run_dir / "events.jsonl", Silent())
    reconcile(spec, run_dir, ledger, log)
    return Dispatcher(spec, run_dir, ledger, log, target=spec.budget.trials, **options), ledger


def begun(dispatcher: Dispatcher) -> tuple[Assignment, Iterator[Probe]]:
    """The next trial and its worker."""
    assignment = dispatcher.next()
    assert assignment is not None
    return assignment, work(assignment, SPEC, is_shared=True)


def states(run_dir: Path) -> list[str]:
    return [t.state for t in read_ledger(run_dir / LEDGER_FILE)[0]]


def test_a_signal_lets_running_trials_come_to_their_next_probe(tmp_path: Path) -> None:
    dispatcher, ledger = opened(tmp_path / "run", grace_s=60.0)
    first, worker = begun(dispatcher)
    assert not dispatcher.take(first.number, next(worker))
    dispatcher.wind_down()
    assert dispatcher.next() is None
    assert (dispatcher.is_over(), dispatcher.is_done) == (False, False)
    assert dispatcher.take(first.number, next(worker))
    dispatcher.finish(first.number)
    assert (dispatcher.is_over(), dispatcher.is_done) == (True, True)
    dispatcher.raise_error()  # there is none
    assert [n for n, *_ in ledger.running()] == [first.number]
    drive(SPEC, tmp_path / "run")
    expected = tmp_path / "expected"
    expected.mkdir()
    drive(SPEC, expected)
    assert conclusions(tmp_path / "run") == conclusions(expected)


def test_a_trial_that_ends_within_the_grace_is_told(tmp_path: Path) -> None:
    dispatcher, _ = opened(tmp_path / "run", grace_s=60.0)
    first, worker = begun(dispatcher)
    *before, last = worker
    for probe in before:
        assert not dispatcher.take(first.number, probe)
    dispatcher.wind_down()
    assert dispatcher.take(first.number, last)
    dispatcher.finish(first.number)
    assert states(tmp_path / "run") == ["COMPLETE"]


def test_without_grace_a_signal_ends_the_sweep_at_once(tmp_path: Path) -> None:
    dispatcher, _ = opened(tmp_path / "run")
    begun(dispatcher)
    dispatcher.wind_down()
    assert dispatcher.is_over()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room, not even for a byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as err:
                assert err.errno == errno.ENOSPC
    return filler


@pytest.mark.parametrize("at_probe", [1, 3])
def test_on_a_full_disk_what_was_finished_is_told_and_nothing_more_begins(
    small_disk: Path, tmp_path: Path, at_probe: int
) -> None:
    run = small_disk / "run"
    with unsynced():
        run.mkdir()
        dispatcher, ledger = opened(run, ballast=Ballast(run), grace_s=60.0)
        first, worker = begun(dispatcher)
        for n in range(1, at_probe + 1):
            probe = next(worker)
            if n == at_probe:
                filler = fill(small_disk)
            ended = dispatcher.take(first.number, probe)
        assert ended
        dispatcher.finish(first.number)
        assert dispatcher.next() is None
        with pytest.raises(OSError, match="No space left") as caught:
            dispatcher.raise_error()
        assert caught.value.errno == errno.ENOSPC and caught.value.filename
        ledger.close()
        assert states(run) == ["COMPLETE" if at_probe == 3 else "RUNNING"]
        assert not (run / BALLAST_FILE).exists()
        filler.unlink()
        drive(SPEC, run)
        expected = tmp_path / "expected"
        expected.mkdir()
        drive(SPEC, expected)
        assert conclusions(run) == conclusions(expected)


def test_a_disk_without_room_for_the_ballast_is_full_at_once(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        Ballast(small_disk)
    assert caught.value.filename == str(small_disk / BALLAST_FILE)


def test_the_ballast_is_real_room_and_given_back_once(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path)
    stat = (tmp_path / BALLAST_FILE).stat()
    assert stat.st_size == BALLAST_BYTES and stat.st_blocks * 512 >= BALLAST_BYTES
    told: list[OSError] = []

    def write() -> int:
        if not told:
            raise NO_ROOM
        return 7

    assert ballast.kept(write, told=told.append) == 7
    assert told == [NO_ROOM] and not ballast.drop()


def broken(dispatcher: Dispatcher, err: Exception, *, n_probes: int = 0) -> Assignment:
    """The next trial, whose attempt breaks with this error after some probes."""
    assignment, worker = begun(dispatcher)
    for _ in range(n_probes):
        dispatcher.take(assignment.number, next(worker))
    record_failure(assignment.home, err, kernel_killed=False)
    dispatcher.broke(assignment.number)
    return assignment


def test_a_workers_full_disk_ends_the_sweep_and_costs_no_attempt(tmp_path: Path) -> None:
    run = tmp_path / "run"
    dispatcher, _ = opened(run, concurrent=2)
    assignment = broken(dispatcher, NO_ROOM)
    assert read_failure(assignment.folder).exhausted == "disk"
    assert dispatcher.next() is None
    with pytest.raises(OSError, match="No space left") as caught:
        dispatcher.raise_error()
    assert caught.value.filename == "/scratch/x"
    for _ in range(SPEC.budget.max_attempts):
        assert states(run) == ["RUNNING"]
        dispatcher, _ = opened(run)
        assert broken(dispatcher, NO_ROOM).number == assignment.number
    drive(SPEC, run)
    assert states(run) == ["COMPLETE"] * 3


def test_an_attempt_lost_with_its_machine_counts_from_the_eleventh_on(tmp_path: Path) -> None:
    there = {"head", "spot-0"}
    dispatcher, _ = opened(tmp_path / "run", machines=lambda: Machines(living=frozenset(there)))
    for n in range(MOST_LOST + SPEC.budget.max_attempts):
        assert states(tmp_path / "run") in ([], ["RUNNING"])
        assignment, _ = begun(dispatcher)
        assert assignment.number == 0
        there.remove(f"spot-{n}")
        there.add(f"spot-{n + 1}")
        shutil.rmtree(assignment.folder / "adapter", ignore_errors=True)
        dispatcher.broke(0)
        assert read_failure(assignment.folder).lost_node == f"spot-{n}"
    assert states(tmp_path / "run") == ["FAIL"]


def test_an_attempt_that_began_on_a_machine_that_was_leaving_is_lost_with_it(
    tmp_path: Path,
) -> None:
    both = frozenset({"head", "spot"})
    there = [Machines(living=both, leaving=frozenset({"spot"}))]
    dispatcher, _ = opened(tmp_path / "run", machines=lambda: there[0])
    assignment, _ = begun(dispatcher)
    there[0] = Machines(living=frozenset({"head"}))
    shutil.rmtree(assignment.folder / "adapter", ignore_errors=True)
    dispatcher.broke(0)
    assert read_failure(assignment.folder).lost_node == "spot"


def test_a_process_that_dies_on_a_machine_that_stays_counts(tmp_path: Path) -> None:
    dispatcher, _ = opened(tmp_path / "run", machines=lambda: Machines(living=frozenset({"head"})))
    for _ in range(SPEC.budget.max_attempts):
        broken(dispatcher, HungRankError("rank 1 of 2 made no step within 5 s"))
    record = read_ledger(tmp_path / "run" / LEDGER_FILE)[0][0]
    assert record.state == "FAIL" and "HungRankError: rank 1 of 2 made no step" in str(
        record.reason
    )


@pytest.mark.parametrize(("n_probes", "state"), [(0, "FAIL"), (2, "COMPLETE")])
def test_a_trial_out_of_time_is_judged_by_its_probes(
    tmp_path: Path, n_probes: int, state: str
) -> None:
    dispatcher, _ = opened(tmp_path / "run")
    err = TrialTimeoutError("the attempt took longer than budget.trial_timeout_s = 9 s")
    broken(dispatcher, err, n_probes=n_probes)
    assert dispatcher.next() is not None
    record = read_ledger(tmp_path / "run" / LEDGER_FILE)[0][0]
    assert record.state == state and record.attempt == 1
    assert "budget.trial_timeout_s" in str(record.reason)
    if n_probes:
        assert (record.stopped_by, record.step) == ("trial_timeout", n_probes)


def test_an_error_of_the_drivers_own_is_no_failure_of_the_trial(tmp_path: Path) -> None:
    run = tmp_path / "run"
    dispatcher, ledger = opened(run)
    assignment, worker = begun(dispatcher)
    ledger.close()
    (run / LEDGER_FILE).rename(run / "elsewhere.db")
    (run / LEDGER_FILE).mkdir()
    assert dispatcher.take(assignment.number, next(worker))
    dispatcher.broke(assignment.number)
    with pytest.raises(OSError):
        dispatcher.raise_error()
    (run / LEDGER_FILE).rmdir()
    (run / "elsewhere.db").rename(run / LEDGER_FILE)
    assert states(run) == ["RUNNING"]


def test_a_trial_that_was_given_up_as_its_driver_died_fails_on_resume(tmp_path: Path) -> None:
    dispatcher, _ = opened(tmp_path / "run")
    assignment, _ = begun(dispatcher)
    record_final(assignment.folder, "Died: again", kind="Died")
    opened(tmp_path / "run")
    record = read_ledger(tmp_path / "run" / LEDGER_FILE)[0][0]
    assert (record.state, record.reason) == ("FAIL", "Died: again")
