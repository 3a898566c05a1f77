"""What lies in the cache, and what of it may go. Imports no torch.

An entry is a file or folder that :mod:`core.store.artifacts` made; its time of change says when it was last used.
Whoever uses the cache holds it: a file in ``.in-use`` that is locked as long as its process lives, also when that
ends by ``kill -9``. What was used since the oldest living hold began is not removed, whatever is asked for: a sweep
holds the cache before it prepares, and its preparation uses everything that its trials will.
"""

import atexit
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.store.locks import one_at_a_time, try_lock
from core.store.place import cache_root

LIMIT_VARIABLE = "UNLEARN_TUNE_CACHE_LIMIT"
"""Environment variable with the most that the cache may hold, such as ``50GiB``; no limit if it is absent."""
ABOUT = "about"
"""Key in the header of a tensor file: what determines its content, as JSON."""
MODELS, PREPARED = "models", "prepared"
"""Kinds that are no work on a model but models: converted ones, and those that ``prepare`` trained."""

_HOLDS = ".in-use"
_UNITS: Mapping[str, int] = {
    "": 1,
    **{f"{sign}B": 1000**n for n, sign in enumerate("KMGT", start=1)},
    **{f"{sign}iB": 1024**n for n, sign in enumerate("KMGT", start=1)},
}
_LARGEST_HEADER = 1 << 27


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something in the cache.

    Attributes:
        kind: Name of the folder that it lies in.
        path: The file or folder.
        size: Bytes.
        used: When it was last used, in seconds since the epoch.
        is_unfinished: Whether it is what a killed process left of something.
    """

    kind: str
    path: Path
    size: int
    used: float
    is_unfinished: bool

    def model(self) -> str | None:
        """What names the model that it was made from; ``None`` where that is not recorded."""
        files = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]
        if self.kind in (MODELS, PREPARED) or not files or self.is_unfinished:
            return None
        found = read_about(files[0]).get("model")
        return None if found is None else str(found)


def entries() -> list[Entry]:
    """Everything in the cache, the longest unused first."""
    root, found = cache_root(), []
    kinds = [p for p in root.iterdir() if p.is_dir() and p.name != _HOLDS] if root.is_dir() else []
    for folder in kinds:
        for path in folder.iterdir():
            if path.suffix != ".lock":
                with suppress(FileNotFoundError):  # somebody else removed it
                    found.append(_entry(folder.name, path))
    return sorted(found, key=lambda e: (e.used, e.path))


def read_about(path: Path) -> dict[str, Any]:
    """What determines a tensor file's content, from its header; nothing where it is not recorded."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= _LARGEST_HEADER else {}
        about = json.loads(header.get("__metadata__", {}).get(ABOUT, "{}"))
    except (OSError, ValueError, AttributeError):
        return {}
    return about if isinstance(about, dict) else {}


def mark_used(path: Path) -> None:
    """Note that an entry is used now."""
    with suppress(FileNotFoundError, PermissionError):  # another user's cache can be read
        os.utime(path)


@contextmanager
def held() -> Iterator[None]:
    """Within the context nothing goes that is used from now on."""
    folder = cache_root() / _HOLDS
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{os.getpid()}-{uuid.uuid4().hex}"
    hidden, path = folder / f".{name}", folder / name
    with hidden.open("w") as file:
        try_lock(file)  # nobody else knows its name yet
        hidden.rename(path)  # nobody sees it unlocked
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def hold_until_exit() -> None:
    """Hold the cache as long as this process lives."""
    _hold_until_exit(cache_root())


@lru_cache
def _hold_until_exit(root: Path) -> None:
    stack = ExitStack()
    stack.enter_context(held())
    atexit.register(stack.close)


def remove(chosen: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries that nobody uses.

    Returns:
        Those that were removed, and those that are in use.
    """
    since = _oldest_hold()
    removed: list[Entry] = []
    in_use: list[Entry] = []
    for entry in chosen:
        (removed if _remove(entry, since) else in_use).append(entry)
    return removed, in_use


def keep_to_limit() -> list[Entry]:
    """Remove what is longest unused until the cache holds no more than :func:`limit`; converted models go last.

    Models that ``prepare`` trained neither count nor go: folders of the user's link to them.

    Returns:
        What was removed.

    Raises:
        UserError: If the limit cannot be read.
    """
    most = limit()
    if most is None:
        return []
    counted = [e for e in entries() if e.kind != PREPARED]
    too_much = sum(e.size for e in counted) - most
    since = _oldest_hold() if too_much > 0 else None
    removed = []
    for entry in sorted(counted, key=lambda e: e.kind == MODELS):
        if too_much <= 0:
            break
        if _remove(entry, since):
            removed.append(entry)
            too_much -= entry.size
    return removed


def limit() -> int | None:
    """Bytes that the cache may hold; ``None`` without a limit.

    Raises:
        UserError: If :data:`LIMIT_VARIABLE` is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)?", text)
    if found is None:
        raise UserError(
            f"{LIMIT_VARIABLE}: a number of bytes with or without a unit (MB, GB, TB, MiB, GiB, TiB) is expected, "
            f"got {text!r}; set it to something like 50GiB, or to nothing"
        )
    return int(float(found[1]) * _UNITS[found[2] or ""])


def _entry(kind: str, path: Path) -> Entry:
    inner = [p.stat() for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
    own = path.stat()
    return Entry(
        kind=kind,
        path=path,
        size=sum(s.st_size for s in inner) if path.is_dir() else own.st_size,
        used=own.st_mtime,
        is_unfinished=path.name.startswith("."),
    )


def _oldest_hold() -> float | None:
    """When the oldest living hold began; those of dead processes are cleared away."""
    begun = []
    for path in (cache_root() / _HOLDS).glob("[!.]*"):
        with suppress(FileNotFoundError):
            try:
                with path.open("r+") as file:
                    if try_lock(file):
                        path.unlink()
                        continue
            except PermissionError:  # another user's
                pass
            begun.append(path.stat().st_mtime)
    return min(begun, default=None)


def _remove(entry: Entry, since: float | None) -> bool:
    """Remove an entry, unless it was used since then or is being made."""
    path = entry.path
    try:
        with one_at_a_time(path, timeout_s=0.0) as beside:
            if since is not None and path.stat().st_mtime >= since:
                return False
            gone = path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}")
            path.rename(gone)  # a folder goes as a whole
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
            beside.unlink(missing_ok=True)
    except TimeoutError:
        return False
    except FileNotFoundError:
        return True
    return True


def age_s(entry: Entry) -> float:
    """Seconds since an entry was last used."""
    return max(0.0, time.time() - entry.used)
