"""A sweep that is kept in a storage: whatever is lost but the storage, it goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from analytic_study import spec_of
from driven_sweep import conclusions, drive, every_kill, unsynced
from s3_server import CREDENTIALS, s3
from small_sweep import WHY

from core.errors import EndedError, UserError
from core.store.checkpoints import CHECKPOINTS, folder_of
from core.store.durable import commit_yaml, read_lines
from tuning.concluding import reconcile
from tuning.config import SweepSpec
from tuning.dispatcher import Assignment, Dispatcher
from tuning.driven_run import taken_run
from tuning.driver import kept_run
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.plan import Launch
from tuning.records import (
    EVENTS_FILE,
    LEASES_TABLE,
    LEDGER_FILE,
    SPEC_FILE,
    attempt_folder,
    read_ledger,
)
from tuning.storage import recovery
from tuning.storage.home import Home

SPACE = {
    "optimizer.learning_rate": {"categorical": [1e-4, 1e-3, 5e-3]} | WHY,
    "adapter.rank": {"categorical": [4, 16]} | WHY,
}


def sweep(n_trials: int = 3) -> SweepSpec:
    """A few short trials, of which the guard stops some."""
    guard = {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0}
    return spec_of(
        space=SPACE,
        sampler={"name": "random", "seed": 4},
        pruning={"retain": guard, "ranking": "none"},
        budget={"trials": n_trials, "max_steps": 2},
    )


def acknowledged(run_dir: Path) -> list[int]:
    """Trials of which somebody was told that they ended."""
    lines = read_lines(run_dir / EVENTS_FILE)
    return [line["number"] for line in lines if line["event"] == "TrialEnded"]


def attempts(run_dir: Path) -> dict[int, int]:
    """How often each trial was begun, by the ledger; empty before there is one."""
    if not (run_dir / LEDGER_FILE).exists():
        return {}
    return {trial.number: trial.attempt for trial in read_ledger(run_dir / LEDGER_FILE)[0]}


@pytest.mark.parametrize("is_lost", [True, False], ids=["disk-lost", "disk-left"])
def test_a_kill_between_any_two_writes_loses_nothing_acknowledged(
    tmp_path: Path, is_lost: bool
) -> None:
    """The driver is killed before each write to run folder or storage, and the run folder goes with it or not."""
    spec, world = sweep(2), tmp_path / "world"
    (world / "storage").mkdir(parents=True)
    with unsynced():
        with every_kill(world, tmp_path / "kills") as kills:
            drive(spec, world / "runs" / "demo", storage=world / "storage")
        expected = conclusions(world / "runs" / "demo")
        resumed = kills.taken[3 :: 5 if is_lost else 9]
        assert len(resumed) >= 5
        for killed in resumed:
            run_dir, storage = killed / "runs" / "demo", killed / "storage"
            told = acknowledged(run_dir)
            before = attempts(run_dir)
            if is_lost:
                shutil.rmtree(run_dir.parent)
            drive(spec, run_dir, storage=storage)
            assert conclusions(run_dir) == expected, killed.name
            after = attempts(run_dir)
            assert {n: after[n] for n in told} == {n: before[n] for n in told}, killed.name


def test_what_was_committed_and_never_told_is_adopted_from_the_storage(tmp_path: Path) -> None:
    """The driver dies, disk and all, after the ranks' last commit: no trial begins again."""
    spec, run_dir, storage = sweep(1), tmp_path / "runs" / "demo", tmp_path / "storage"
    storage.mkdir()
    with unsynced(), every_kill(tmp_path, tmp_path.with_name("kills")) as kills:
        drive(spec, run_dir, storage=storage)
    manifests = "storage/demo/drivers/*/trials/0000/attempt-1/manifest.json"
    last = next(
        kill
        for kill in kills.taken
        if any(
            "adapter" in path.read_text() and _n_lines(path) == 2 for path in kill.glob(manifests)
        )
    )
    assert acknowledged(last / "runs" / "demo") == []
    shutil.rmtree(last / "runs")
    drive(spec, last / "runs" / "demo", storage=last / "storage")
    assert attempts(last / "runs" / "demo") == {0: 1}
    assert acknowledged(last / "runs" / "demo") == [0]
    assert conclusions(last / "runs" / "demo") == conclusions(run_dir)


def test_a_lost_attempt_is_gone_on_with_from_its_checkpoint_which_goes_with_the_trial(
    tmp_path: Path,
) -> None:
    """Machine and driver are lost after a checkpoint between two probes; the next attempt finds it elsewhere."""
    spec, run_dir, storage = sweep(1), tmp_path / "runs" / "demo", tmp_path / "storage"
    storage.mkdir()
    name = folder_of(Path(), 2) / "state.json"
    with unsynced():
        with begun(spec, run_dir, storage) as assignment:
            workplace = assignment.home.enter()
            assert workplace.earlier == ()
            (workplace.folder / name).parent.mkdir(parents=True)
            (workplace.folder / name).write_text("{}")
            workplace.commit(is_told=False)
            (workplace.folder / "log.txt").touch()
            workplace.commit(is_told=False)
            assert list(kept(storage)) == [name.as_posix()], "nothing is taken there for a step"
            workplace.leave()
        shutil.rmtree(run_dir)
        with begun(spec, run_dir, storage) as assignment:
            workplace = assignment.home.enter()
            (earlier,) = workplace.earlier
            assert (earlier / name).read_text() == "{}"
            workplace.leave()
        drive(spec, run_dir, storage=storage)
    assert [t.attempt for t in read_ledger(run_dir / LEDGER_FILE)[0]] == [3]
    assert not [path for path in kept(storage) if CHECKPOINTS in path]
    assert not [path for path in storage.rglob("state.json*") if path.is_file()]


@pytest.mark.parametrize("takeover", [False, True])
def test_a_driver_whose_folder_is_behind_writes_into_the_ledger_that_it_takes_from_the_storage(
    tmp_path: Path, takeover: bool
) -> None:
    """It holds the lease of its own ledger first, and of the other one then."""
    storage, behind = tmp_path / "storage", tmp_path / "here" / "demo"
    storage.mkdir()
    with unsynced():
        drive(sweep(1), behind, storage=storage)
        drive(sweep(2), tmp_path / "there" / "demo", storage=storage)
        with (
            taken_run(behind, None, takeover=takeover, tell=print) as lease,
            kept_run(behind, Launch(), Silent(), takeover=takeover) as keeper,
        ):
            lease.take()
            ledger = Ledger(behind, sweep(2), create=False, lease=lease)
            ledger.set_note("target", 2)
            ledger.close()
            keeper.secure()
            with closing(sqlite3.connect(behind / LEDGER_FILE)) as database:
                ((pid, token),) = database.execute(f"SELECT pid, token FROM {LEASES_TABLE}")
            assert pid == os.getpid() and token
    assert conclusions(behind) == conclusions(tmp_path / "there" / "demo")


@contextmanager
def begun(spec: SweepSpec, run_dir: Path, storage: Path) -> Iterator[Assignment]:
    """The next trial of a driver, which brings the run back first."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with suppress(UserError):  # none is there yet
        recovery.bring_if_absent(run_dir, str(storage))
    with recovery.keeping(run_dir, str(storage), takeover=True) as keeper:
        commit_yaml(run_dir / SPEC_FILE, {"sweep": spec.plain()})
        ledger = Ledger(run_dir, spec, create=not (run_dir / LEDGER_FILE).exists())
        log = EventLog(run_dir / EVENTS_FILE, Silent())
        keeper.promise(SPEC_FILE)
        reconcile(spec, run_dir, ledger, log, keeper=keeper)
        dispatcher = Dispatcher(spec, run_dir, ledger, log, target=1, keeper=keeper)
        assignment = dispatcher.next()
        assert assignment is not None
        yield assignment


def kept(storage: Path) -> Iterator[str]:
    """Files of attempts in a storage, by the manifests there."""
    for manifest in storage.glob("demo/drivers/*/trials/*/*/manifest.json"):
        yield from json.loads(manifest.read_text())["files"]


def _n_lines(manifest: Path) -> int:
    stored: Any = json.loads(manifest.read_text())["files"]["history.jsonl"]["stored"]
    path = manifest.parent / stored
    return len(read_lines(path)) if path.exists() else 0


def test_a_sweep_on_s3_comes_back_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "runs" / "demo"
    with unsynced(), s3() as storage:
        drive(sweep(2), run_dir, storage=storage)
        expected = conclusions(run_dir)
        files = {p.relative_to(run_dir) for p in run_dir.rglob("*") if p.is_file()}
        shutil.rmtree(run_dir)
        drive(sweep(3), run_dir, storage=storage)
    assert conclusions(run_dir)[:2] == expected
    assert acknowledged(run_dir)[-1] == 2
    assert {p for p in files if not (run_dir / p).exists()} == set()
    assert (run_dir / attempt_folder(0, 1) / "adapter").is_dir()
    kept = [p for p in run_dir.rglob("*") if p.is_file()]
    assert not any(b"canary" in path.read_bytes() for path in kept)


def test_an_outage_ends_the_driver_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is taken away after the first trial began: no other begins, and the way on is said."""
    monkeypatch.setattr(recovery, "PATIENCE_S", 0.0)
    spec, storage, run_dir = sweep(2), tmp_path / "storage", tmp_path / "runs" / "demo"
    storage.mkdir()
    run_dir.mkdir(parents=True)
    launch = Launch(storage=str(storage))
    with (
        unsynced(),
        pytest.raises(
            EndedError, match="Nothing finished is lost; go on with: unlearn-tune resume"
        ),
        kept_run(run_dir, launch, Silent()) as keeper,
    ):
        commit_yaml(run_dir / SPEC_FILE, {"sweep": spec.plain()})
        log, ledger = EventLog(run_dir / EVENTS_FILE, Silent()), Ledger(run_dir, spec, create=True)
        keeper.promise(SPEC_FILE)
        dispatcher = Dispatcher(spec, run_dir, ledger, log, target=2, concurrent=2, keeper=keeper)
        assert dispatcher.next() is not None
        storage.rename(tmp_path / "away")
        assert dispatcher.next() is None
        assert dispatcher.is_done and dispatcher.is_over()
        dispatcher.raise_error()
    (tmp_path / "away").rename(storage)
    monkeypatch.undo()
    with unsynced():
        drive(spec, run_dir, storage=storage)
        drive(spec, tmp_path / "control")
    assert conclusions(run_dir) == conclusions(tmp_path / "control")


def test_a_node_that_does_not_see_the_run_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joined after all others were asked; without a storage nothing of its trial would be found."""
    monkeypatch.setattr("tuning.storage.home._SHOWN_WITHIN_S", 0.0)
    folder = tmp_path / "trials" / "0000" / "attempt-1"
    with pytest.raises(
        UserError, match=r"attempt-1: this node \(.*\) does not see the run folder; "
    ):
        Home(folder=folder).enter()
    folder.mkdir(parents=True)
    Home(folder=folder).enter().leave()
