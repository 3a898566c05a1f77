"""Durable files: written beside, synced, renamed, and the folder synced, so that a crash leaves old or new."""

import hashlib
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from core.errors import FileError
from core.store.texts import parse_json, read_text

_YAML_SEAL = "# sha256 of what follows: "
_CHANGED = "is not what was written (its checksum differs); restore the file from a copy"
_SEAL = re.compile(r',? ?"crc32": (\d+)\}$')
_TAIL = 1 << 12  # bytes of a file's end that are read at a time


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Within the context a file is written: an error of the system that names no file, as of a full disk, names it."""
    try:
        yield
    except OSError as err:
        if err.filename is None and err.errno is not None:
            err.filename = str(path)
        raise


def commit(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, sync it, and rename it to ``path``.

    Raises:
        OSError: If the disk is full or the folder cannot be written; ``path`` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _sync_all(temporary)
            temporary.replace(path)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)
        sync(path.parent)


def commit_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a temporary folder, sync it, and let it take the place of ``path``.

    A folder cannot be replaced in one step: a crash between the two renames leaves the old one beside
    ``path``, under its name with ``.old``.
    """
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)

    def replace(temporary: Path) -> None:
        write(temporary)
        _sync_all(temporary)
        if path.exists():
            path.rename(old)

    commit(path, replace)
    shutil.rmtree(old, ignore_errors=True)


def commit_text(path: Path, text: str) -> None:
    """Commit ``text`` in UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    commit(path, write)


def commit_json(path: Path, value: Mapping[str, Any]) -> None:
    """Commit ``value`` as indented JSON; non-finite numbers are written as strings."""
    text = json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
    commit_text(path, text)


def commit_yaml(path: Path, value: Mapping[str, Any], *, header: str = "") -> None:
    """Commit ``value`` as YAML in the order of its keys, below ``header`` lines."""
    commit_text(path, header + _yaml(value))


def commit_sealed_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Commit ``value`` as YAML below a checksum of it: half of such a file may be a whole one with another meaning."""
    text = _yaml(value)
    commit_text(path, f"{_YAML_SEAL}{_sha256(text)}\n{text}")


def refuse_broken_seal(text: str, *, where: str) -> None:
    """Refuse what :func:`commit_sealed_yaml` wrote, if it has changed; text without a checksum passes.

    Raises:
        FileError: If it has.
    """
    first, _, rest = text.partition("\n")
    if first.startswith(_YAML_SEAL) and first.removeprefix(_YAML_SEAL) != _sha256(rest):
        raise FileError(where, f"what follows {_CHANGED}", 1)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _yaml(value: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=100)
    return text


def commit_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Commit JSON lines, in place of those that ``path`` has; :func:`append_line` goes on after them."""
    commit_text(path, "".join(_line(value) for value in values))


def rename_folder(temporary: Path, path: Path) -> None:
    """Sync a complete folder and give it its name, which nothing has."""
    with written(path):
        _sync_all(temporary)
        temporary.rename(path)
        sync(path.parent)


def append_line(path: Path, value: Mapping[str, Any], *, synced: bool = True) -> None:
    """Append one JSON line; a torn last line, which readers ignore, is cut off first.

    Args:
        path: The file.
        value: The line.
        synced: Wait until the disk has it, and give the line a checksum of what stands before it, as ``crc32``;
            without, a kill loses nothing, but a power cut may.
    """
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        if not is_new:
            _cut_torn_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(value, sealed=synced))
            file.flush()
            if synced:
                os.fsync(file.fileno())
        if is_new and synced:
            sync(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of ``path``; an unfinished last line is left out.

    Raises:
        FileError: If the file cannot be read or is damaged; of a line with a checksum any changed byte is damage.
    """
    if not path.exists():
        return []
    whole, _, _ = read_text(path).rpartition("\n")
    lines = enumerate(whole.split("\n"), start=1)
    found = [_read_line(line, path, number) for number, line in lines if line]
    for number, value in enumerate(found, start=1):
        if not isinstance(value, dict):
            raise FileError(
                str(path),
                f"record {number}: an object is expected, got {value!r}; restore the file from a copy",
            )
    return found


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot hold, by the strings ``nan``, ``inf``, ``-inf``."""
    if isinstance(value, float):
        is_finite = value == value and value not in (float("inf"), float("-inf"))
        return value if is_finite else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict | Mapping):  # dict first: the abstract class is slow to ask
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def _line(value: Mapping[str, Any], *, sealed: bool = True) -> str:
    text = json.dumps(finite(value), allow_nan=False)
    if sealed:
        comma = ", " if value else ""
        text = f'{text[:-1]}{comma}"crc32": {zlib.crc32(text.encode())}}}'
    return text + "\n"


def _read_line(line: str, path: Path, number: int) -> Any:
    """The value of a line, without its checksum, if it has one."""
    seal = _SEAL.search(line)
    text = line if seal is None else line[: seal.start()] + "}"
    value = parse_json(text, where=str(path), line=number)
    if seal is not None and zlib.crc32(text.encode()) != int(seal[1]):
        raise FileError(str(path), _CHANGED, number)
    return value


def _cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last end of a line; only the file's end is read."""
    with path.open("rb+") as file:
        begin = size = file.seek(0, os.SEEK_END)
        while begin > 0:
            end, begin = begin, max(0, begin - _TAIL)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                begin += newline + 1
                break
        if begin < size:
            file.truncate(begin)


def _sync_all(path: Path) -> None:
    """Sync a file, or every file below a folder and the folders."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync_all(inner)
    sync(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
