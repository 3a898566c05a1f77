"""A checkpoint on disk is whole and of this trial, or it is refused with what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from core.store import checkpoints
from core.store.checkpoints import (
    MANIFEST,
    MARKER,
    File,
    RefusedError,
    folder_of,
    found,
    verify,
    verify_file,
)

IDENTITY: Mapping[str, str] = {"configuration": "a", "data": "b"}
FILES: Mapping[str, bytes] = {"rank-0.safetensors": b"weights" * 9, "adapter/saved": b"best"}


def written(attempt: Path, step: int, identity: Mapping[str, str] = IDENTITY) -> Path:
    """A checkpoint of an attempt."""
    draft = checkpoints.new_draft(attempt, step)
    for name, content in FILES.items():
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_bytes(content)
    files = {name: File.of(draft / name) for name in FILES}
    checkpoints.finish(attempt, step, identity=identity, files=files)
    return folder_of(attempt, step)


def read(path: Path) -> None:
    for name, expected in verify(path, identity=IDENTITY).items():
        verify_file(path, name, expected)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    read(written(tmp_path, 3))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


Damage = Callable[[bytes], bytes]
DAMAGES: Mapping[str, Damage] = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one-byte-short": lambda content: content[:-1],
    "a-bit-flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "longer": lambda content: content + b"0",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST, MARKER])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: Damage) -> None:
    path = written(tmp_path, 3)
    (path / name).write_bytes(damage((path / name).read_bytes()))
    with pytest.raises(RefusedError, match=r"is damaged|is not complete"):
        read(path)


@pytest.mark.parametrize("name", [*FILES, MANIFEST, MARKER])
def test_a_lost_file_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, 3)
    (path / name).unlink()
    with pytest.raises(RefusedError, match=r"cannot be read|is not complete"):
        read(path)


def test_what_differs_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, 3, {"configuration": "a", "data": "other"})
    with pytest.raises(RefusedError, match="it is of another data$"):
        verify(path, identity=IDENTITY)
    path = written(tmp_path, 4, {})
    with pytest.raises(RefusedError, match="it is of another configuration and data$"):
        verify(path, identity=IDENTITY)


def test_the_most_steps_come_first_and_of_one_step_the_last_attempt(tmp_path: Path) -> None:
    one, two = tmp_path / "attempt-1", tmp_path / "attempt-2"
    for attempt, step in ((one, 4), (one, 12), (two, 4), (two, 9)):
        written(attempt, step)
    (one / "checkpoints" / "else").mkdir()
    expected = [folder_of(one, 12), folder_of(two, 9), folder_of(two, 4), folder_of(one, 4)]
    assert found([one, two, tmp_path / "attempt-3"]) == expected
    checkpoints.keep_newest([one, two])
    assert found([one, two]) == expected[:2]


def test_a_draft_that_a_crash_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    left = checkpoints.new_draft(tmp_path, 3)
    (left / "rank-0.safetensors").write_bytes(b"half")
    assert found([tmp_path]) == []
    written(tmp_path, 4)
    assert not left.exists()


def test_all_are_removed(tmp_path: Path) -> None:
    written(tmp_path, 4)
    checkpoints.remove_all([tmp_path, tmp_path / "none"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_committed_file_is_kept_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the file system has no links")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    source, kept = tmp_path / "saved", tmp_path / "kept" / "saved"
    source.write_bytes(b"best so far")
    checkpoints.take_in(source, kept)
    newer = tmp_path / "newer"
    newer.write_bytes(b"better")
    newer.replace(source)
    assert (source.read_bytes(), kept.read_bytes()) == (b"better", b"best so far")
    assert (kept.stat().st_nlink == 1) or has_links
