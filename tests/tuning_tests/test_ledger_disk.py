"""Where a ledger's file lies is said where it is not safe, with the way out; and what `doctor` says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from command_line import Command, is_refused, write
from postgres import PASSWORD, Postgres

from tuning.driven_run import ready_for_ledger
from tuning.environment_checks import ledger
from tuning.events import Event, Warned
from tuning.surroundings import LEDGER_VARIABLE, network_file_system


class Mounted(NamedTuple):
    """As psutil names them."""

    mountpoint: str
    fstype: str


Mount = Callable[[Sequence[Mounted]], None]


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Mount:
    """Say what is mounted where; nothing is."""

    def mount_them(mounted: Sequence[Mounted]) -> None:
        monkeypatch.setattr(
            psutil, "disk_partitions", lambda *, all: [Mounted("/", "ext4"), *mounted]
        )

    return mount_them


class Seen:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def show(self, event: Event) -> None:
        self.events.append(event)


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *(
            (kind, True)
            for kind in ("nfs", "nfs4", "cifs", "lustre", "ceph", "9p", "fuse.sshfs", "fuse.s3fs")
        ),
        *(
            (kind, False)
            for kind in ("ext4", "xfs", "overlay", "tmpfs", "fuseblk", "fuse.fuse-overlayfs")
        ),
    ],
)
def test_network_file_systems_are_told_from_local_ones(
    tmp_path: Path, mount: Mount, kind: str, is_network: bool
) -> None:
    mount([Mounted(str(tmp_path), kind)])
    assert network_file_system(tmp_path / "runs" / "not yet") == (kind if is_network else None)
    assert network_file_system(tmp_path.parent / f"{tmp_path.name}-beside") is None


def test_the_innermost_and_latest_mount_counts(tmp_path: Path, mount: Mount) -> None:
    (tmp_path / "local").mkdir()
    mount([Mounted(str(tmp_path), "nfs4"), Mounted(f"{tmp_path}/local", "ext4")])
    assert network_file_system(tmp_path / "local" / "runs") is None
    assert network_file_system(tmp_path / "runs") == "nfs4"
    (tmp_path / "link").symlink_to(tmp_path)
    assert network_file_system(tmp_path / "link" / "runs") == "nfs4"
    mount([Mounted(str(tmp_path), "nfs4"), Mounted(str(tmp_path), "ext4")])
    assert network_file_system(tmp_path) is None


def test_a_sweep_with_its_ledger_on_a_network_says_so_and_goes_on(
    tmp_path: Path, mount: Mount
) -> None:
    mount([Mounted(str(tmp_path), "nfs4")])
    seen = Seen()
    ready_for_ledger(tmp_path, None, seen)
    (event,) = seen.events
    assert isinstance(event, Warned)
    assert event.text.startswith(
        f"{tmp_path}: the ledger is a SQLite file on a network file system (nfs4)"
    )
    assert "--ledger postgresql://" in event.text and "a local disk" in event.text
    mount([])
    ready_for_ledger(tmp_path, None, seen)
    assert len(seen.events) == 1


def test_doctor_looks_at_the_disk(tmp_path: Path, mount: Mount) -> None:
    mount([Mounted(str(tmp_path), "cifs")])
    found = ledger(tmp_path, {})
    assert found.status == "warn" and "(cifs)" in found.found and "--ledger" in found.fix
    mount([])
    assert ledger(tmp_path, {}).status == "ok"


def test_doctor_looks_at_the_server(postgres: Postgres) -> None:
    database = postgres.database()
    found = ledger(Path("runs"), {LEDGER_VARIABLE: postgres.url(database)})
    assert found.status == "ok" and found.found.endswith("answers") and PASSWORD not in found.found
    assert postgres.ask(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [
        (0,)
    ]
    absent = ledger(Path("runs"), {LEDGER_VARIABLE: postgres.url("absent")})
    assert absent.status == "error" and 'database "absent" does not exist' in absent.found
    assert "check that the server runs" in absent.fix


def test_a_ledger_that_cannot_be_used_is_refused_before_anything_begins(
    tune: Command, tiny_sweep: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tiny_sweep)
    other = tune("sweep", file, "--ledger", "mysql://u:canary@h/d")
    is_refused(other, "--ledger: PostgreSQL is the only", after_it_began=True)
    away = tune("sweep", file, "--ledger", "postgresql://u:canary@127.0.0.1:1/d")
    is_refused(
        away, "postgresql://***@127.0.0.1:1/d: the ledger cannot be opened", after_it_began=True
    )
    assert "canary" not in away.err + other.err
    assert not Path("runs").exists() or list(Path("runs").iterdir()) == []
    monkeypatch.setenv(LEDGER_VARIABLE, "nonsense")
    said = f"{LEDGER_VARIABLE}: a URL like postgresql://"
    is_refused(tune("sweep", file), said, after_it_began=True)
