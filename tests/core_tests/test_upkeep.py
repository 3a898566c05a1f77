"""What may go from the cache: the longest unused first, and never what a living process has used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from filelock import FileLock

from core.errors import UserError
from core.store import artifacts, upkeep
from core.store.upkeep import LIMIT_VARIABLE, Entry

A_DAY = 86400.0
ONE = 4096


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path))
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    return tmp_path


def put(cache: Path, kind: str, name: str, *, days: float = 1.0, size: int = ONE) -> Path:
    """An entry that was last used some days ago."""
    path = cache / kind / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    used = time.time() - days * A_DAY
    os.utime(path, (used, used))
    return path


def names(found: list[Entry]) -> list[str]:
    return [f"{e.kind}/{e.path.name}" for e in found]


@pytest.fixture
def holder(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the cache."""
    code = (
        "from core.store.upkeep import held\n"
        "with held():\n    print('holds', flush=True)\n    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_entries_are_listed_with_kind_and_size_the_longest_unused_first(cache: Path) -> None:
    put(cache, "factors", "new.safetensors", days=1)
    put(cache, "importance", "old.safetensors", days=9, size=10)
    (cache / "factors" / "new.safetensors.lock").touch()
    folder = cache / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"xyz")
    found = upkeep.entries()
    assert names(found) == ["importance/old.safetensors", "factors/new.safetensors", "models/m"]
    assert [e.size for e in found] == [10, ONE, 3]


def test_an_artifact_says_what_it_was_made_from() -> None:
    artifacts.tensors("factors", {"model": "of this", "rank": 4}, lambda: {"a": torch.zeros(2)})
    rows = {"model": "of that"}
    artifacts.tensors_by_row("reference", rows, ["1"], lambda _: {"1": torch.ones(1)})
    assert {e.kind: e.model() for e in upkeep.entries()} == {
        "factors": "of this",
        "reference": "of that",
    }


def test_reading_an_artifact_marks_it_as_used(cache: Path) -> None:
    artifacts.tensors("factors", {"n": 1}, lambda: {"a": torch.zeros(1)})
    (path,) = (cache / "factors").glob("*.safetensors")
    os.utime(path, (0.0, 0.0))
    artifacts.tensors("factors", {"n": 1}, lambda: {"a": torch.ones(1)})
    assert path.stat().st_mtime > time.time() - A_DAY


def test_what_was_used_since_a_living_hold_began_stays(
    cache: Path, holder: subprocess.Popen[str]
) -> None:
    before = put(cache, "factors", "before")
    since = put(cache, "factors", "since")
    upkeep.mark_used(since)
    removed, in_use = upkeep.remove(upkeep.entries())
    assert (names(removed), names(in_use)) == (["factors/before"], ["factors/since"])
    assert not before.exists() and since.exists()


def test_a_process_that_was_killed_holds_nothing(
    cache: Path, holder: subprocess.Popen[str]
) -> None:
    path = put(cache, "factors", "one")
    upkeep.mark_used(path)
    holder.kill()
    holder.wait()
    removed, _ = upkeep.remove(upkeep.entries())
    assert names(removed) == ["factors/one"]
    assert not list((cache / ".in-use").iterdir())


def test_what_is_being_made_stays(cache: Path) -> None:
    path = put(cache, "factors", "one")
    lock = FileLock(path.with_name("one.lock"))
    with lock:
        assert upkeep.remove(upkeep.entries())[0] == []
    assert names(upkeep.remove(upkeep.entries())[0]) == ["factors/one"]
    assert not list((cache / "factors").iterdir())


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param(3, [], id="within-the-limit"),
        pytest.param(2, ["factors/1"], id="the-longest-unused-goes"),
        pytest.param(1, ["factors/1", "reference/2"], id="models-stay-while-others-can-go"),
        pytest.param(0, ["factors/1", "reference/2", "models/9"], id="models-go-last"),
    ],
)
def test_the_limit_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, entries: int, expected: list[str]
) -> None:
    put(cache, "models", "9", days=9)
    put(cache, "reference", "2", days=2)
    put(cache, "factors", "1", days=3)
    prepared = put(cache, "prepared", "target", days=99)
    monkeypatch.setenv(LIMIT_VARIABLE, str(entries * ONE))
    assert names(upkeep.keep_to_limit()) == expected
    assert prepared.exists()


def test_making_an_artifact_keeps_to_the_limit_and_keeps_the_new_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(cache, "factors", "old.safetensors")
    monkeypatch.setenv(LIMIT_VARIABLE, "1 KiB")
    found = artifacts.tensors("factors", {"n": 2}, lambda: {"a": torch.zeros(1000)})
    assert len(found["a"]) == 1000
    assert not old.exists()
    assert len(upkeep.entries()) == 1


def test_an_artifact_that_goes_while_it_is_read_is_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make() -> dict[str, torch.Tensor]:
        made.append(len(made))
        return {"a": torch.full((1,), len(made))}

    artifacts.tensors("factors", {"n": 3}, make)
    load = safetensors.torch.load_file
    gone: list[Path] = []

    def load_late(path: Path) -> dict[str, torch.Tensor]:
        if not gone:
            gone.append(path)
            path.unlink()
        return load(path)

    monkeypatch.setattr(artifacts, "load_file", load_late)
    assert int(artifacts.tensors("factors", {"n": 3}, make)["a"]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("1000", 1000), ("2 KiB", 2048), ("1.5GB", 1_500_000_000), ("3TiB", 3 * 2**40)],
)
def test_a_limit_has_a_unit(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    assert upkeep.limit() == expected


@pytest.mark.parametrize("text", ["much", "-1GB", "5 G", "1,5GB"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(UserError, match=f"{LIMIT_VARIABLE}: a number of bytes .* got '{text}'"):
        upkeep.limit()
