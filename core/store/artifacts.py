"""Content-addressed cache of what is computed once and shared by all trials, runs and users' models.

An artifact is found by the hash of everything that determines it. Two processes that need the same
one at the same time share the work: the first makes it under a lock, the other waits and reads it.
What has not been used for longest goes when the cache is full (:mod:`core.store.upkeep`).
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import FileError, first_line
from core.store import upkeep
from core.store.durable import commit, commit_json
from core.store.locks import one_at_a_time
from core.store.place import cache_root

VERSIONS: Mapping[str, int] = {
    "baselines": 2,
    "reference": 2,
    "lora_fisher": 1,
    "importance": 1,
    "factors": 1,
    "evaluations": 1,
}
"""Raised when the computation of a kind changes: the cache outlives releases."""

Read = TypeVar("Read")

_MAKES_NOTHING: ContextVar[bool] = ContextVar("makes nothing", default=False)
_NOTED: ContextVar[list[str] | None] = ContextVar("noted", default=None)


class NotMadeError(Exception):
    """An artifact is not in the cache, and was only looked for."""


@contextmanager
def only_looked_for() -> Iterator[None]:
    """Within the context nothing is made: what is not in the cache raises :class:`NotMadeError`."""
    token = _MAKES_NOTHING.set(True)
    try:
        yield
    finally:
        _MAKES_NOTHING.reset(token)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Within the context the files of all artifacts that are asked for are noted, by their names below the cache."""
    names: list[str] = []
    token = _NOTED.set(names)
    try:
        yield names
    finally:
        _NOTED.reset(token)


def content_key(determinants: Mapping[str, Any]) -> str:
    """Hash of the canonical JSON of everything that determines an artifact, 32 hex digits."""
    text = json.dumps(determinants, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def row_key(ids: Sequence[int], *, n_context: int) -> str:
    """Hash of a row of token ids, of which the first ``n_context`` are not predicted."""
    return content_key({"ids": ids, "n_context": n_context})


def tensors(
    kind: str, determinants: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors from the cache, made first if they are not there."""
    path = _folder(kind) / f"{_key(kind, determinants)}.safetensors"
    return _read(path, lambda: _commit_tensors(path, make(), determinants), load_file)


def tensors_by_row(
    kind: str,
    determinants: Mapping[str, Any],
    rows: Sequence[str],
    make: Callable[[Sequence[str]], Mapping[str, Tensor]],
) -> list[Tensor]:
    """A tensor for each row from the cache; only those that no earlier call made are made first.

    What one call makes is one file, whose header is its index: as many files as there were selections of rows
    that needed new ones. A tensor is made once and then kept as it is. Processes that need new rows of the
    same kind and determinants take turns, and each makes what the others before it did not.

    Args:
        kind: Of artifact.
        determinants: Everything that determines all of them, but the row.
        rows: Hash of each row, and of what determines its own tensor; twice the same is the same tensor.
        make: Tensors of some rows, by their hash.
    """
    folder = _folder(kind) / _key(kind, determinants)
    upkeep.mark_used(folder)
    parts = _parts(folder)
    if not parts.keys() >= set(rows):
        if _MAKES_NOTHING.get():
            raise NotMadeError(folder.name)
        with one_at_a_time(folder):
            parts = _parts(folder)
            missing = [row for row in dict.fromkeys(rows) if row not in parts]
            if missing:
                path = folder / f"{content_key({'rows': missing})}.safetensors"
                _commit_tensors(path, make(missing), determinants)
                parts |= dict.fromkeys(missing, path)
                upkeep.keep_to_limit()
    by_part: dict[Path, list[str]] = {}
    for row in dict.fromkeys(rows):
        by_part.setdefault(parts[row], []).append(row)
    found: dict[str, Tensor] = {}
    for path, names in by_part.items():
        _note(path)
        found |= _undamaged(path, partial(_tensors_of, names=names))
    return [found[row] for row in rows]


def record(
    kind: str, determinants: Mapping[str, Any], make: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Named numbers from the cache, measured first if they are not there."""
    path = _folder(kind) / f"{_key(kind, determinants)}.json"

    def load(path: Path) -> dict[str, float]:
        loaded: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    return _read(path, lambda: commit_json(path, make()), load)


def folder(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """A folder from the cache; ``make`` fills a temporary one, which is renamed when complete."""
    path = _folder(kind) / name

    def make_folder() -> None:
        commit(path, make)

    _make_once(path, make_folder)
    return path


def _parts(folder: Path) -> dict[str, Path]:
    """The file of each row."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= dict.fromkeys(_undamaged(path, _names_of), path)
    return found


def _names_of(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _tensors_of(path: Path, *, names: Sequence[str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def _commit_tensors(
    path: Path, made: Mapping[str, Tensor], determinants: Mapping[str, Any]
) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}
    about = {upkeep.ABOUT: json.dumps(determinants)}
    commit(path, lambda p: save_tensors(plain, p, metadata=about))


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors into a new file.

    Raises:
        OSError: If the disk is full or the folder cannot be written; safetensors has an error of its own for it.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as err:
        code = re.search(r"\(os error (\d+)\)", str(err))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from err


def _key(kind: str, determinants: Mapping[str, Any]) -> str:
    return content_key({"version": VERSIONS[kind], **determinants})


def _folder(kind: str) -> Path:
    upkeep.hold_until_exit()
    path = cache_root() / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def _note(path: Path) -> None:
    names = _NOTED.get()
    if names is not None:
        names.append(path.relative_to(cache_root()).as_posix())


def _read(path: Path, make: Callable[[], None], read: Callable[[Path], Read]) -> Read:
    """Read an artifact, made first if it is not there."""
    while True:
        _make_once(path, make)
        _note(path)
        try:
            return _undamaged(path, read)
        except FileNotFoundError:
            continue  # removed by somebody who looked before it was marked as used


def _undamaged(path: Path, read: Callable[[Path], Read]) -> Read:
    """What a file of the cache holds.

    Raises:
        FileError: If it is not what was written there.
    """
    try:
        return read(path)
    except (SafetensorError, ValueError) as err:
        kind = path.relative_to(cache_root()).parts[0]
        raise FileError(
            str(path),
            f"a file of the cache is damaged ({first_line(err)}); remove it and its like with "
            f"`unlearn-tune cache clear --kind {kind}`, they are made anew",
        ) from err


def _make_once(path: Path, make: Callable[[], None]) -> None:
    upkeep.mark_used(path)
    if path.exists():
        return
    if _MAKES_NOTHING.get():
        raise NotMadeError(path.name)
    with one_at_a_time(path):
        if path.exists():
            return
        make()
    upkeep.keep_to_limit()
