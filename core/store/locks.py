"""Locks on files, between processes; where a file system has none, the error names the file.

The system's own error names none: it is raised anew with the file, so that whoever reads it knows which disk to
leave (:mod:`core.store.refusal`).
"""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout


def try_lock(file: IO[str] | IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, without waiting.

    Args:
        file: The file.
        shared: Others may hold it at the same time, if they share it, too.

    Returns:
        Whether it is locked now; if not, somebody else holds it.

    Raises:
        OSError: If the file system has no locks; with the file's name.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:
        raise _named(err, str(file.name)) from err
    return True


@contextmanager
def one_at_a_time(path: Path, *, timeout_s: float = -1.0) -> Iterator[Path]:
    """Within the context no other process is in the context of the same file or folder.

    Args:
        path: What is worked on; the lock is a file beside it.
        timeout_s: Seconds to wait; without end if negative.

    Yields:
        The file that is locked.

    Raises:
        TimeoutError: If another process was in it as long.
        OSError: If the file system has no locks, or the folder cannot be written; with the file's name.
    """
    beside = path.with_name(path.name + ".lock")
    lock = FileLock(beside, timeout=timeout_s, fallback_to_soft=False)  # which a kill leaves locked
    try:
        lock.acquire()
    except Timeout as err:
        raise TimeoutError(f"{beside}: held by another process") from err
    except NotImplementedError as err:  # what filelock makes of ENOSYS
        raise OSError(errno.ENOSYS, str(err), str(beside)) from err
    except OSError as err:
        raise _named(err, str(beside)) from err
    try:
        yield beside
    finally:
        lock.release()


def _named(err: OSError, name: str) -> OSError:
    """The same error with the name of its file."""
    return err if err.filename else OSError(err.errno, err.strerror or str(err), name)
