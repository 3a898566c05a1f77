"""Door to pyarrow's file systems: files of a storage, put whole or not at all, read, listed and deleted.

A put is atomic for readers: one object of a bucket becomes visible when it is complete; a file of a folder is written
beside, synced and renamed. Nothing here renames an object or counts on a folder being one.
"""

import errno
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError, in_a_line
from core.store.durable import commit
from core.text.redaction import redacted
from tuning.storage.address import below, folder_of, is_url
from tuning.storage.patience import Patience

Found = TypeVar("Found")

PATIENCE_S = 600.0
"""How long a driver waits for a storage that does not answer."""
RANK_PATIENCE_S = 900.0
"""How long a rank does: while both wait, the driver ends the sweep first, and no attempt counts as broken."""
_PIECE_BYTES = 1 << 22
_GCS_RETRIES_S = 30
"""Google's client tries again by itself, for a quarter of an hour if it is not told."""
_NEVER = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|"
    r"INVALID_BUCKET|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|bucket does not exist|permission|[Ff]orbidden|"
    r"[Uu]nauthenticated|[Uu]nauthorized|credentials"
)
"""What an object store says that it will say again."""
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|bucket does not exist|INVALID_BUCKET")
_FINAL_NUMBERS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class StorageError(UserError):
    """A storage refused, or did not answer for as long as it was waited for.

    Args:
        text: Place, what it said, and what to do.
        is_final: Asking again would end in the same way.
    """

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        """Keep whether it is final, for whoever would ask again."""
        super().__init__(text)
        self.is_final = is_final

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep both when the error travels between processes."""
        return (_storage_error, (str(self), self.is_final))


def _storage_error(text: str, is_final: bool) -> StorageError:
    return StorageError(text, is_final=is_final)


class AbsentError(StorageError):
    """There is no such file in the storage."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made."""
        return (AbsentError, (str(self),))


@dataclass(frozen=True, kw_only=True)
class Store:
    """A place in a storage. Travels between processes; each opens its own connection.

    Attributes:
        root: Address of a storage, checked.
        place: Path below it.
        patience: With a storage that does not answer.
    """

    root: str
    place: str = ""
    patience: Patience = field(default_factory=lambda: Patience(seconds=PATIENCE_S), compare=False)

    @property
    def address(self) -> str:
        """Of this place."""
        return below(self.root, self.place) if self.place else self.root

    def at(self, *names: str) -> "Store":
        """The place below this one."""
        return replace(self, place="/".join((self.place, *names)).lstrip("/"))

    def put(self, name: str, content: bytes) -> None:
        """Put a file, whole or not at all, in the place of one of its name.

        Raises:
            StorageError: If the storage does not take it.
        """
        self._ask("write", name, lambda: self._put(name, lambda: io.BytesIO(content)))

    def put_file(self, name: str, path: Path) -> "Printed":
        """Put a local file; returns what was put, should the file have grown meanwhile.

        Raises:
            StorageError: If the storage does not take it.
        """
        return self._ask("write", name, lambda: self._put(name, lambda: path.open("rb")))

    def get(self, name: str) -> bytes:
        """A file.

        Raises:
            AbsentError: If there is none.
            StorageError: If it cannot be read.
        """

        def read() -> bytes:
            with (
                self._opened() as (files, root),
                files.open_input_stream(f"{root}/{name}") as found,
            ):
                content: bytes = found.read()
                return content

        return self._ask("read", name, read)

    def fetch(self, name: str, path: Path) -> "Printed":
        """Write a file into a new local one, which is not synced; returns what was read.

        Raises:
            AbsentError: If there is none.
            StorageError: If it cannot be read.
        """

        def read() -> Printed:
            with (
                self._opened() as (files, root),
                files.open_input_stream(f"{root}/{name}") as found,
                path.open("wb") as target,
            ):
                return _copied(found, target)

        return self._ask("read", name, read)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name.

        Raises:
            StorageError: If the storage does not say.
        """

        def seen() -> bool:
            import pyarrow.fs

            with self._opened() as (files, root):
                found = files.get_file_info(f"{root}/{name}").type
                return bool(found == pyarrow.fs.FileType.File)

        return self._ask("read", name, seen)

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files below a place, sorted; none where nothing is.

        Raises:
            StorageError: If it cannot be listed.
        """

        def listed() -> list[str]:
            with self._opened() as (files, root):
                return sorted(
                    info.path.removeprefix(f"{root}/") for info in _files(files, root, prefix)
                )

        return self._ask("list", prefix, listed)

    def times(self, prefix: str) -> dict[str, float]:
        """When each file below a place was put, by the storage's own clock.

        Raises:
            StorageError: If it cannot be listed.
        """

        def listed() -> dict[str, float]:
            with self._opened() as (files, root):
                return {
                    info.path.removeprefix(f"{root}/"): info.mtime_ns / 1e9
                    for info in _files(files, root, prefix)
                }

        return self._ask("list", prefix, listed)

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is no error.

        Raises:
            StorageError: If it cannot be deleted.
        """

        def deleted() -> None:
            with self._opened() as (files, root):
                try:
                    files.delete_file(f"{root}/{name}")
                except FileNotFoundError:
                    return

        self._ask("delete", name, deleted)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The file system, and the path of this place in it; pyarrow's own errors are an ``OSError`` within."""
        import pyarrow

        try:
            files, path = _file_system(self.root)
            yield files, f"{path}/{self.place}" if self.place else path
        except pyarrow.ArrowException as err:
            raise OSError(errno.EINVAL, in_a_line(err)) from err

    def _ask(self, verb: str, name: str, call: Callable[[], Found]) -> Found:
        def in_vain(err: OSError) -> StorageError:
            return _said(err, verb, f"{self.address}: {name}" if name else self.address)

        return self.patience.until_done(call, in_vain=in_vain)

    def _put(self, name: str, opened: Callable[[], Any]) -> "Printed":
        """Raises an error in the middle without completing what was begun."""
        folder = folder_of(self.address)
        if folder is not None and not folder_of(self.root).is_dir():  # type: ignore[union-attr]
            raise OSError(errno.ENOENT, "no such folder; make it, or mount it")
        with opened() as source:
            if folder is not None:
                printed = Printed()

                def write(temporary: Path) -> None:
                    nonlocal printed
                    with temporary.open("wb") as target:
                        printed = _copied(source, target)

                commit(folder / name, write)
                return printed
            with self._opened() as (files, root):
                stream = files.open_output_stream(f"{root}/{name}")
                printed = _copied(source, stream)
                stream.close()  # makes it visible: not after an error, as a context would
                return printed


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What names the content of a file: its size and its hash."""

    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()

    @classmethod
    def of(cls, path: Path) -> "Printed":
        """Of a local file."""
        with path.open("rb") as file:
            return _copied(file, None)


def _copied(source: Any, target: Any) -> Printed:
    digest, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
        if target is not None:
            target.write(piece)
    return Printed(size=size, sha256=digest.hexdigest())


@lru_cache(maxsize=256)
def _file_system(address: str) -> tuple[Any, str]:
    import pyarrow.fs

    if not is_url(address):
        return pyarrow.fs.LocalFileSystem(), address
    scheme = address.partition("://")[0]
    option = (
        "allow_delayed_open=true" if scheme == "s3" else f"retry_limit_seconds={_GCS_RETRIES_S}"
    )
    if option.partition("=")[0] not in address:  # a small object is then one request, not three
        address += ("&" if "?" in address else "?") + option
    files, path = pyarrow.fs.FileSystem.from_uri(address)
    return files, path.rstrip("/")


def _files(files: Any, root: str, prefix: str) -> list[Any]:
    import pyarrow.fs

    place = f"{root}/{prefix}".rstrip("/")
    selector = pyarrow.fs.FileSelector(place, recursive=True, allow_not_found=True)
    found = files.get_file_info(selector)
    return [
        info
        for info in found
        if info.type == pyarrow.fs.FileType.File and not info.base_name.startswith(".")
    ]


def _said(err: OSError, verb: str, place: str) -> StorageError:
    """What a user is told: place, what was said, and what to do about it."""
    said = redacted(in_a_line(err))
    place = redacted(place)
    if isinstance(err, FileNotFoundError) and verb == "read":
        return AbsentError(f"{place}: there is no such file in the storage", is_final=True)
    text = f"{place}: the storage does not {verb}: {said}"
    if _NO_BUCKET.search(said):
        return StorageError(f"{text}; make the bucket first, or give another", is_final=True)
    if err.errno in _FULL:
        return StorageError(f"{text}; free some space there, or raise the quota")
    if err.errno in _FINAL_NUMBERS or _NEVER.search(said):
        return StorageError(
            f"{text}; this node needs credentials, or rights, to read, write, list and delete there (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role)",
            is_final=True,
        )
    if err.errno == errno.EINVAL:
        return StorageError(f"{text}; look at the address", is_final=True)
    return StorageError(f"{text}; see whether it is reachable from this node")
