"""Whose a run in a storage is: the last to claim it, and nobody else's puts are believed or read."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from core.errors import UserError
from tuning.records import EVENTS_FILE, LEDGER_FILE, SPEC_FILE, STORAGE_FILE
from tuning.storage.backup import Backup
from tuning.storage.claims import Claims, FencedError
from tuning.storage.keeping import InPlace, InStorage
from tuning.storage.patience import Patience
from tuning.storage.recovery import (
    SILENT_S,
    bring_back,
    bring_if_absent,
    claims_on,
    keeping,
    wait_for_silence,
)
from tuning.storage.store import StorageError, Store

HASTY = Patience(seconds=0.0)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


@pytest.fixture
def claims(storage: Path) -> Claims:
    return Claims(store=Store(root=str(storage), patience=HASTY).at("demo"))


def run_folder(path: Path, *, says: str) -> Path:
    """A run folder whose ledger says something; the same, saying something else, if it is there."""
    path.mkdir(parents=True, exist_ok=True)
    (path / SPEC_FILE).write_text("sweep: {}\n", encoding="utf-8")
    with closing(sqlite3.connect(path / LEDGER_FILE)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS says (word TEXT)")
        database.execute("DELETE FROM says")
        database.execute("INSERT INTO says VALUES (?)", (says,))
    return path


def said(run_dir: Path) -> str:
    with closing(sqlite3.connect(run_dir / LEDGER_FILE)) as database:
        return str(database.execute("SELECT word FROM says").fetchone()[0])


def test_the_last_claim_counts_and_the_others_are_told_who_made_it(claims: Claims) -> None:
    assert claims.newest() is None
    first = claims.claim()
    claims.check(first)
    second = claims.claim()
    assert claims.names() == [first, second]
    with pytest.raises(FencedError, match="another driver took this run over .pid .* on .* since"):
        claims.check(first)
    claims.check(second)


def test_of_two_that_claim_at_the_same_time_one_goes_on(
    claims: Claims,
) -> None:
    """Both see no claim, and take the same number; the greater name wins, whoever was first."""
    for order in ("ab", "ba"):
        place = replace(claims, store=claims.store.at(order))
        for letter in order:
            place.store.put(f"claims/000001-{letter * 8}.json", b"{}")
        with pytest.raises(FencedError):
            place.check("000001-aaaaaaaa")
        place.check("000001-bbbbbbbb")


def test_a_driver_that_was_fenced_off_believes_nothing_it_puts_and_overwrites_nothing(
    claims: Claims, tmp_path: Path
) -> None:
    old, new = run_folder(tmp_path / "old", says="1"), run_folder(tmp_path / "new", says="2")
    first = Backup(claims, claims.claim(), old, tell=print)
    first.start()
    assert first.wait(first.promise(SPEC_FILE), unless=bool)
    second = Backup(claims, claims.claim(), new, tell=print)
    second.start()
    assert second.wait(second.promise(), unless=bool)
    run_folder(old, says="of the old one, too late")
    with pytest.raises(FencedError):
        first.wait(first.promise(), unless=bool)
    for backup in (first, second):
        backup.close(is_whole=True)
    bring_back(claims, tmp_path / "back")
    assert said(tmp_path / "back") == "2"


def test_what_is_believed_is_there_for_whoever_claims_afterwards(
    claims: Claims, tmp_path: Path
) -> None:
    run_dir = run_folder(tmp_path / "run", says="0")
    backup = Backup(claims, claims.claim(), run_dir, tell=print)
    backup.start()
    backup.promise(SPEC_FILE)
    for n in range(1, 4):
        run_folder(run_dir, says=str(n))
        assert backup.wait(backup.promise(), unless=bool)
        bring_back(claims, tmp_path / f"back-{n}")
        assert said(tmp_path / f"back-{n}") == str(n)
    backup.close(is_whole=True)


def test_a_storage_that_was_taken_away_is_not_taken_for_an_empty_one(
    claims: Claims, storage: Path
) -> None:
    """As a mount that is gone: the folder is there, and what was in it is not."""
    claim = claims.claim()
    (storage / "demo").rename(storage / "elsewhere")
    with pytest.raises(
        StorageError, match="is not there any more; is another disk, or none, mounted"
    ):
        claims.check(claim)


def test_a_promise_that_cannot_be_kept_is_said_to_whoever_waits(
    storage: Path, tmp_path: Path
) -> None:
    claims, told = claims_on(str(storage), "demo"), list[str]()
    sleeps = count()
    claims = Claims(
        store=replace(
            claims.store, patience=Patience(seconds=100.0, clock=lambda: 30.0 * next(sleeps))
        )
    )
    backup = Backup(
        claims, claims.claim(), run_folder(tmp_path / "run", says="1"), tell=told.append
    )
    storage.rename(tmp_path / "gone")
    backup.start()
    with pytest.raises(StorageError, match="no such folder; make it, or mount it"):
        backup.wait(backup.promise(), unless=bool)
    assert len(told) == 1 and "nothing is lost meanwhile" in told[0]
    backup.close(is_whole=False)


def test_without_a_storage_the_folder_is_all_there_is(tmp_path: Path) -> None:
    with keeping(tmp_path, None) as keeper:
        assert isinstance(keeper, InPlace)
        assert keeper.is_kept(keeper.promise())
        assert keeper.home(3, 1).folder == tmp_path / "trials/0003/attempt-1"
    assert not (tmp_path / STORAGE_FILE).exists()


def test_a_folder_remembers_its_storage(tmp_path: Path, storage: Path) -> None:
    run_dir = run_folder(tmp_path / "runs" / "demo", says="1")
    with keeping(run_dir, str(storage)) as keeper:
        keeper.secure(SPEC_FILE)
    run_folder(run_dir, says="2")
    with keeping(run_dir, None) as keeper:
        assert isinstance(keeper, InStorage)
        keeper.secure()
    bring_if_absent(tmp_path / "other" / "demo", str(storage))
    assert said(tmp_path / "other" / "demo") == "2"


def test_a_driver_that_comes_back_takes_what_its_successor_did(
    tmp_path: Path, storage: Path
) -> None:
    """Its own folder knows less: it is put aside, and its name stays the run's."""
    ours = run_folder(tmp_path / "ours" / "demo", says="1")
    with keeping(ours, str(storage)) as keeper:
        keeper.secure(SPEC_FILE)
    theirs = tmp_path / "theirs" / "demo"
    bring_if_absent(theirs, str(storage))
    with keeping(theirs, None) as keeper:
        run_folder(theirs, says="2")
        keeper.secure()
    run_folder(ours, says="of the old one, never kept")
    with keeping(ours, None):
        assert said(ours) == "2"
    (aside,) = ours.glob(".before-*")
    assert said(aside) == "of the old one, never kept"


def test_a_run_of_the_same_name_is_not_overwritten(tmp_path: Path, storage: Path) -> None:
    with keeping(run_folder(tmp_path / "a" / "demo", says="1"), str(storage)) as keeper:
        keeper.secure(SPEC_FILE)
    other = run_folder(tmp_path / "b" / "demo", says="2")
    with (
        pytest.raises(UserError, match="demo holds another run of this name"),
        keeping(other, str(storage)),
    ):
        raise AssertionError("it was let in")
    new = tmp_path / "c" / "demo"
    new.mkdir(parents=True)
    with (
        pytest.raises(UserError, match="holds a run of this name already; go on"),
        keeping(new, str(storage)),
    ):
        raise AssertionError("it was let in")


def test_a_run_that_was_not_kept_so_far_is_put_whole(tmp_path: Path, storage: Path) -> None:
    run_dir = run_folder(tmp_path / "runs" / "demo", says="1")
    attempt = run_dir / "trials" / "0000" / "attempt-1"
    (attempt / "adapter").mkdir(parents=True)
    (attempt / "adapter" / "weights").write_bytes(b"weights")
    (attempt / "result.json").write_text("{}")
    with keeping(run_dir, str(storage)) as keeper:
        keeper.secure()
    bring_if_absent(tmp_path / "other" / "demo", str(storage))
    back = tmp_path / "other" / "demo" / "trials" / "0000" / "attempt-1"
    assert (back / "adapter" / "weights").read_bytes() == b"weights"
    assert (back / "result.json").is_file()


def test_an_empty_storage_has_no_run(tmp_path: Path, storage: Path) -> None:
    with pytest.raises(UserError, match="demo: no run is there; give the storage and the name"):
        bring_if_absent(tmp_path / "runs" / "demo", str(storage))
    with pytest.raises(UserError, match="no such folder; make it, or mount it, on all nodes"):
        claims_on(str(tmp_path / "none"), "demo")


def test_a_driver_that_seems_to_live_is_waited_for_and_if_it_does_not_fenced_off(
    storage: Path, claims: Claims
) -> None:
    """Its files grow old by themselves; the sleep of the test makes them older, or new."""
    name, told = claims.claim(), list[str]()
    claims.of(name).at("driver").put(LEDGER_FILE, b"")

    def aged(by_s: float) -> Callable[[float], None]:
        def age(_: float) -> None:
            for path in (p for p in (storage / "demo").rglob("*") if p.is_file()):
                seen = path.stat().st_mtime
                os.utime(path, (seen, seen - by_s if by_s else time.time()))

        return age

    aged(20.0)(0.0)
    assert 19.0 < (claims.silent_s(name) or 0.0) < 60.0
    wait_for_silence(sleeping(claims, aged(50.0)), name, told.append)
    assert "wrote to the storage 20 s ago; waiting until it has been silent" in told[0]
    assert (claims.silent_s(name) or 0.0) >= SILENT_S
    wait_for_silence(sleeping(claims, aged(0.0)), name, told.append)
    assert len(told) == 1
    aged(0.0)(0.0)
    aged(20.0)(0.0)
    with pytest.raises(UserError, match="another driver holds this run .* --takeover"):
        wait_for_silence(sleeping(claims, aged(0.0)), name, told.append)
    assert claims.names() == [name]


def sleeping(claims: Claims, sleep: Callable[[float], None]) -> Claims:
    return Claims(store=replace(claims.store, patience=Patience(seconds=0.0, sleep=sleep)))


def test_a_driver_that_ended_is_not_waited_for(claims: Claims, tmp_path: Path) -> None:
    name = claims.claim()
    assert 0.0 <= (claims.silent_s(name) or 0.0) < 60.0
    backup = Backup(claims, name, run_folder(tmp_path / "run", says="1"), tell=print)
    backup.start()
    backup.close(is_whole=True)
    assert claims.silent_s(name) is None


def test_the_last_events_are_kept_when_a_driver_ends(claims: Claims, tmp_path: Path) -> None:
    run_dir = run_folder(tmp_path / "run", says="1")
    with (run_dir / EVENTS_FILE).open("a", encoding="utf-8") as events:
        backup = Backup(claims, claims.claim(), run_dir, tell=print)
        backup.start()
        for n in range(3):
            events.write(f"{n}\n")
            events.flush()
            assert backup.wait(backup.promise(SPEC_FILE), unless=bool)
    backup.close(is_whole=True)
    bring_back(claims, tmp_path / "back")
    assert (tmp_path / "back" / EVENTS_FILE).read_text(encoding="utf-8") == "0\n1\n2\n"
