"""Checkpoints on disk: whole or not there, verified when they are read, and two of them kept.

A checkpoint is a folder below ``checkpoints/`` of an attempt, named after its step. It is filled under another name;
then come the manifest, with the size and hash of every file and what the checkpoint is of, the marker, which holds
the manifest's own hash, and the name. Tensors are safetensors and the rest is JSON: reading one runs no code.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import FileError
from core.store.durable import commit, commit_json, commit_text, rename_folder
from core.store.texts import read_json, read_text

CHECKPOINTS = "checkpoints"
"""Folder of an attempt that holds its checkpoints."""
MANIFEST, MARKER = "manifest.json", "complete"
KEPT = 2
"""Checkpoints that are kept: where the newest is damaged, there is the one before."""

_NAME = re.compile(r"step-(\d{8})")


class RefusedError(Exception):
    """A checkpoint that is not gone on from: it is damaged, or of another trial."""


@dataclass(frozen=True, kw_only=True)
class File:
    """What a file of a checkpoint must be.

    Attributes:
        size: Bytes.
        sha256: Hash of its content, in hex.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "File":
        """What a file is now."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(size=path.stat().st_size, sha256=digest)


def folder_of(attempt: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return attempt / CHECKPOINTS / f"step-{step:08d}"


def new_draft(attempt: Path, step: int) -> Path:
    """An empty folder for what becomes the checkpoint of a step; drafts that a crash left are removed."""
    path = folder_of(attempt, step)
    if path.parent.is_dir():
        for old in path.parent.glob(".step-*"):
            shutil.rmtree(old, ignore_errors=True)
    draft = draft_of(attempt, step)
    draft.mkdir(parents=True)
    return draft


def draft_of(attempt: Path, step: int) -> Path:
    """Where a checkpoint is filled before it has its name; the same on every rank."""
    path = folder_of(attempt, step)
    return path.with_name(f".{path.name}")


def take_in(source: Path, target: Path) -> None:
    """Have a committed file, which is only ever replaced as a whole, under another name too.

    It is the same file where the file system has links, so that it takes no room, and else a copy.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        commit(target, partial(shutil.copyfile, source))


def finish(
    attempt: Path, step: int, *, identity: Mapping[str, str], files: Mapping[str, File]
) -> None:
    """Give a draft its manifest, its marker and its name.

    Args:
        attempt: Folder of the attempt.
        step: Of the checkpoint.
        identity: What it is of; see :func:`verify`.
        files: Those of the draft, by their names in it.
    """
    draft, path = draft_of(attempt, step), folder_of(attempt, step)
    described = {name: asdict(file) for name, file in files.items()}
    manifest = {"step": step, "identity": dict(identity), "files": described}
    commit_json(draft / MANIFEST, manifest)
    commit_text(draft / MARKER, File.of(draft / MANIFEST).sha256)
    shutil.rmtree(path, ignore_errors=True)  # a damaged one that was not gone on from
    rename_folder(draft, path)


def found(attempts: Sequence[Path]) -> list[Path]:
    """Checkpoints of a trial's attempts, those of the most steps first; of one step the last attempt's."""
    named = [
        (int(match[1]), i, path)
        for i, attempt in enumerate(attempts)
        if (attempt / CHECKPOINTS).is_dir()
        for path in (attempt / CHECKPOINTS).iterdir()
        if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, _, path in sorted(named, reverse=True)]


def verify(path: Path, *, identity: Mapping[str, str]) -> dict[str, File]:
    """The files that a checkpoint must have, once marker and manifest are found to be whole and of this trial.

    Args:
        path: The checkpoint.
        identity: What determines the trial's course, by name; the words of what differs are told.

    Raises:
        RefusedError: If it is damaged, or of another trial.
    """
    try:
        marked = read_text(path / MARKER).strip()
        if File.of(path / MANIFEST).sha256 != marked:
            raise RefusedError(f"{MANIFEST} is damaged")
        manifest: dict[str, Any] = read_json(path / MANIFEST)
    except (FileError, OSError) as err:
        raise RefusedError(f"it is not complete ({err})") from err
    before = manifest["identity"]
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        raise RefusedError(f"it is of another {' and '.join(changed)}")
    return {name: File(**file) for name, file in manifest["files"].items()}


def verify_file(path: Path, name: str, expected: File) -> Path:
    """A file of a checkpoint, once its content is found to be what was written.

    Raises:
        RefusedError: If it is not, or not there.
    """
    try:
        is_whole = File.of(path / name) == expected
    except OSError as err:
        raise RefusedError(f"{name} cannot be read ({err})") from err
    if not is_whole:
        raise RefusedError(f"{name} is damaged")
    return path / name


def keep_newest(attempts: Sequence[Path]) -> None:
    """Remove all checkpoints of a trial but the newest two."""
    for path in found(attempts)[KEPT:]:
        _remove(path)


def remove_all(attempts: Iterable[Path]) -> None:
    """Remove the checkpoints of attempts that nobody will go on from."""
    for attempt in attempts:
        _remove(attempt / CHECKPOINTS)


def _remove(folder: Path) -> None:
    """Take a folder away in one step, so that no part of it can pass for a whole."""
    gone = folder.with_name(f".{folder.name}.gone")
    with suppress(FileNotFoundError):
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
