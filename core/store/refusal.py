"""What a person is told of an error of the operating system: which place, what it said, what to do.

A folder that cannot be written, a file system without locks or a limit of the machine is no bug of ours and no
mistake in a file of the user's; it can show at any write. So the rule stands here, once, for whoever ends a command.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from core.errors import first_line
from core.store.place import CACHE_VARIABLE, cache_root

_WRITABLE = "a folder that this user can write"
_NO_LOCKS = "a folder on a disk with file locks (local, or NFS with its lock service)"
_NEEDED: Mapping[int, str] = {
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EROFS: _WRITABLE,
    errno.EDQUOT: "a folder with room, or free some of the quota",
    errno.ENOSPC: "a folder with room, or free some space",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.ENOTSUP: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.ENOTDIR: "a folder; a file is in its place",
    errno.EEXIST: "a folder; a file is in its place",
    errno.EISDIR: "a file; a folder is in its place",
    errno.ENAMETOOLONG: "a shorter path",
    errno.ELOOP: "a path whose links end somewhere",
    errno.EIO: "another disk; this one reports errors (see `dmesg`)",
    errno.ESTALE: "a mounted file system; this one was taken away meanwhile",
    errno.ENOTCONN: "a mounted file system; this one was taken away meanwhile",
    errno.ETIMEDOUT: "a mounted file system that answers",
}
"""What is needed where the system says so."""
_LIMITS: Mapping[int, str] = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n 65536`), then run it again",
    errno.ENFILE: "the machine has too many open files; close some programs",
    errno.ENOMEM: "the machine has no memory left; close some programs, or take fewer trials at a time",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`), then run it again",
}
"""What to do about a limit of the machine, which has no place."""


def refusal(err: OSError) -> str | None:
    """Place, what the system said, and what to do; ``None`` for an error that our own code made.

    Args:
        err: An error that nobody on its way knew better.
    """
    if err.errno is None:
        return None
    if err.errno in _LIMITS:
        return f"{err.strerror}: {_LIMITS[err.errno]}"
    if err.errno == errno.ENOENT and "temporary directory" in (err.strerror or ""):
        return f"{err.strerror}; set TMPDIR to {_WRITABLE}"
    if not isinstance(err.filename, str | bytes):
        return None
    place = Path(os.fsdecode(err.filename2 or err.filename))
    said = err.strerror or first_line(err)
    is_cached = _is_about(place, cache_root())
    needed = _NEEDED.get(err.errno)
    if err.errno == errno.ENOENT and is_cached and not cache_root().is_dir():
        needed = _WRITABLE  # as in /proc, where nothing can be made
    if needed is None:
        return None
    if is_cached:
        return f"cache folder {cache_root()}: {place}: {said}; set {CACHE_VARIABLE} to {needed}"
    return f"{place}: {said}; give {needed}"


def _is_about(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, or on the way to it."""
    absolute = path.absolute()
    return absolute == folder or folder in absolute.parents or absolute in folder.parents
