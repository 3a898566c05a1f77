"""A folder in a storage: whole, as it was at one moment, whatever is put or lost between.

Files are put under names that were never used before; then a manifest is put that names them, with sizes and hashes.
Who reads sees the manifest before or the one after. What no manifest names is deleted afterwards.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from core.errors import FileError
from core.store.durable import commit, commit_folder
from core.store.texts import decoded, parse_json
from tuning.storage.patience import Patience
from tuning.storage.store import AbsentError, Printed, StorageError, Store

MANIFEST: Final = "manifest.json"
_FILES: Final = "files"
_TRIES = 3
"""At reading a folder that is being put anew meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of a folder.

    Attributes:
        stored: Its name in the storage.
        size: In bytes.
        sha256: Of its content.
    """

    stored: str
    size: int
    sha256: str

    @property
    def printed(self) -> Printed:
        """What names its content."""
        return Printed(size=self.size, sha256=self.sha256)


Manifest = Mapping[str, Entry]
"""Files by their names in the folder."""


class Snapshots:
    """Puts one folder again and again. Nobody else puts to the same place."""

    def __init__(self, store: Store) -> None:
        """Nothing is there yet.

        Args:
            store: The place.
        """
        self._store = store
        self._entries: dict[str, Entry] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._may_be_there: set[str] = set()
        self._n_puts = 0

    def put(self, folder: Path) -> list[str]:
        """Put the folder as it is, without files or folders whose names begin with a dot.

        Returns:
            Names of the files that were new or changed.

        Raises:
            StorageError: If the storage does not take it; what was there before still is.
        """
        self._n_puts += 1
        found = {name: _state(path) for name, path in _files(folder).items()}
        changed = [name for name, state in found.items() if self._seen.get(name) != state]
        if not changed and found.keys() == self._entries.keys():
            return []
        entries = {name: entry for name, entry in self._entries.items() if name in found}
        for name in changed:
            stored = f"{_FILES}/{name}~{self._n_puts}"
            self._may_be_there.add(stored)
            printed = self._store.put_file(stored, folder / name)
            entries[name] = Entry(stored=stored, **asdict(printed))
        self._store.put(MANIFEST, _encoded(entries))
        self._entries, self._seen = entries, found
        self._delete_loose()
        return changed

    def hasty(self, seconds: float) -> "Snapshots":
        """The same with little patience from now on."""
        self._store = replace(self._store, patience=Patience(seconds=seconds))
        return self

    def _delete_loose(self) -> None:
        """Delete what the manifest does not name; what is not deleted now is the next time."""
        hasty = replace(self._store, patience=Patience(seconds=0.0))
        with suppress(StorageError):
            for stored in self._may_be_there - {e.stored for e in self._entries.values()}:
                hasty.delete(stored)
                self._may_be_there.discard(stored)


def fetch(store: Store, folder: Path, *, only: str = "", without: str = "") -> bool:
    """Bring a folder from a storage to a local one, verified; files that are the same already stay.

    What is a folder there takes the place of the local one in one step, so that a crash leaves no mixture.

    Args:
        store: The place.
        folder: The local folder; files of it that the storage has not stay.
        only: File or folder in it; all if absent.
        without: File or folder in it that is not brought.

    Returns:
        Whether it is in the storage.

    Raises:
        StorageError: If it cannot be read, or is not what was put.
    """
    for last in range(_TRIES - 1, -1, -1):
        try:
            manifest = read_manifest(store)
        except AbsentError:
            return False
        try:
            for top, entries in _by_top(manifest).items():
                if top != without and only in ("", top):
                    _fetch_top(store, entries, folder / top)
        except AbsentError:  # a newer manifest names others
            if not last:
                raise
            continue
        return True
    return False


def read_manifest(store: Store) -> Manifest:
    """What a place holds.

    Raises:
        AbsentError: If nothing was ever put there.
        StorageError: If its manifest is damaged.
    """
    where = f"{store.address}/{MANIFEST}"
    content = store.get(MANIFEST)
    try:
        files = parse_json(decoded(content, where=where), where=where)["files"]
        return {_inner(name): Entry(**entry) for name, entry in files.items()}
    except (FileError, KeyError, TypeError, ValueError, AttributeError) as err:
        raise StorageError(
            f"{where}: is no manifest; restore it from an older version", is_final=True
        ) from err


def _encoded(entries: Manifest) -> bytes:
    files = {name: asdict(entries[name]) for name in sorted(entries)}
    return (json.dumps({"version": 1, "files": files}, indent=1) + "\n").encode()


def _inner(name: str) -> str:
    """A name that stays in its folder.

    Raises:
        ValueError: If it does not.
    """
    parts = name.split("/")
    if not all(parts) or any(part.startswith(".") or "\\" in part for part in parts):
        raise ValueError(name)
    return name


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = path
    return found


def _state(path: Path) -> tuple[int, int, int]:
    """By which a file that was written since is told from one that was not."""
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ino


def _by_top(manifest: Manifest) -> dict[str, dict[str, Entry]]:
    """Entries by the first part of their names, with the rest of it; empty for a file."""
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in manifest.items():
        top, _, rest = name.partition("/")
        found.setdefault(top, {})[rest] = entry
    return found


def _fetch_top(store: Store, entries: Mapping[str, Entry], path: Path) -> None:
    if all(_is_same(path / rest if rest else path, entry) for rest, entry in entries.items()):
        return
    if "" in entries:
        commit(path, lambda temporary: _fetch_file(store, entries[""], temporary))
        return

    def write(temporary: Path) -> None:
        for rest, entry in entries.items():
            target = temporary / rest
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch_file(store, entry, target)

    commit_folder(path, write)


def _is_same(path: Path, entry: Entry) -> bool:
    return (
        path.is_file() and path.stat().st_size == entry.size and Printed.of(path) == entry.printed
    )


def _fetch_file(store: Store, entry: Entry, target: Path) -> None:
    """Write a file, verified.

    Raises:
        StorageError: If it is not what was put.
    """
    found = store.fetch(entry.stored, target)
    if found != entry.printed:
        raise StorageError(
            f"{store.address}/{entry.stored}: {found.size} bytes with sha256 {found.sha256[:12]} are stored, "
            f"{entry.size} with {entry.sha256[:12]} were put; restore it from an older version of the bucket, or "
            "delete the trial's folder there",
            is_final=True,
        )
