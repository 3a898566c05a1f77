"""What a storage refuses: place, what it said and what to do, and never a credential."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command_line import Command
from s3_server import CREDENTIALS, address, refusing

from tuning.storage.patience import Patience
from tuning.storage.store import AbsentError, StorageError, Store


@dataclass
class Waiting:
    """A clock that only waiting moves on."""

    now: float = 0.0
    told: list[str] = field(default_factory=list)

    def patience(self, seconds: float) -> Patience:
        return Patience(
            seconds=seconds, tell=self.told.append, sleep=self._sleep, clock=lambda: self.now
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    yield


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "AccessDenied", "this node needs credentials, or rights"),
        (403, "SignatureDoesNotMatch", "this node needs credentials, or rights"),
        (404, "NoSuchBucket", "make the bucket first"),
    ],
)
def test_what_will_not_change_is_said_at_once(status: int, code: str, advice: str) -> None:
    waiting = Waiting()
    with refusing(status, code, times=99) as (place, asked):
        store = Store(root=place, patience=waiting.patience(600.0))
        with pytest.raises(StorageError, match=advice) as caught:
            store.put("a", b"content")
        assert asked
    assert (waiting.now, waiting.told) == (0.0, [])
    assert "the storage does not write" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_storage_that_is_overloaded_for_a_while_is_asked_again() -> None:
    waiting = Waiting()
    with refusing(503, "SlowDown", times=4) as (place, asked):
        Store(root=place, patience=waiting.patience(600.0)).put("a", b"content")
        assert len(asked) == 5


def test_a_storage_that_does_not_answer_is_waited_for_with_a_word_and_then_given_up() -> None:
    waiting = Waiting()
    store = Store(root=str(Path("/proc/1/none")), patience=waiting.patience(120.0))
    with pytest.raises(StorageError, match="no such folder; make it, or mount it"):
        store.put("a", b"content")
    assert 120.0 <= waiting.now < 160.0
    (told,) = waiting.told
    assert "trying again for up to" in told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    waiting, fsync, failures = Waiting(), os.fsync, [number, number]

    def failing(descriptor: int) -> None:
        if failures:
            raise OSError(failures.pop(), "said by the disk")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    Store(root=str(tmp_path), patience=waiting.patience(60.0)).put("a", b"content")
    assert not failures
    assert (tmp_path / "a").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nobody_at_the_address_is_named_with_it() -> None:
    port = free_port()
    store = Store(root=address("127.0.0.1", port), patience=Patience(seconds=0.0))
    with pytest.raises(StorageError, match=f"{port}.*see whether it is reachable from this node"):
        store.put("a", b"content")


def test_a_query_that_no_storage_knows_is_a_mistake_in_the_address() -> None:
    store = Store(root="s3://bucket/x?region=us-east-1&regoin=1", patience=Patience(seconds=60.0))
    with pytest.raises(StorageError, match="regoin.*look at the address"):
        store.names()


def test_an_absent_file_is_no_outage(tmp_path: Path) -> None:
    waiting = Waiting()
    store = Store(root=str(tmp_path), patience=waiting.patience(60.0))
    with pytest.raises(AbsentError, match="a: there is no such file in the storage"):
        store.get("a")
    assert waiting.now == 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resume", "s3://KEY:canary@bucket/demo"), r"RUN: .* s3://\*\*\*@bucket/demo holds cred"),
        (("resume", "s3://bucket"), "RUN: URL/NAME is expected"),
        (("resume", "runs/demo", "--storage", "nowhere"), "nowhere: no such folder; make it"),
        (("resume", "runs/demo", "--storage", "."), "demo: no run is there; give the storage"),
    ],
)
def test_the_command_line_refuses_it_with_status_2(
    tune: Command, arguments: tuple[str, ...], said: str
) -> None:
    done = tune(*arguments)
    assert done.status == 2
    assert re.search(said, done.err)
    assert "canary" not in done.err and "Traceback" not in done.err
