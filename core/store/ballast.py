"""Room that is kept for the last writes: a file that holds nothing, given back when the disk is full."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

BALLAST_FILE = ".ballast"
BALLAST_BYTES = 1 << 20
"""Enough for the results of all trials that run, and the ledger's pages of them."""

Written = TypeVar("Written")

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(err: BaseException) -> bool:
    """Whether an error says that a disk is full, or a quota used up."""
    return isinstance(err, OSError) and err.errno in _FULL


class Ballast:
    """A file of zeros in a folder."""

    def __init__(self, folder: Path) -> None:
        """Fill it, unless an earlier one is still there.

        Raises:
            OSError: If there is no room for it: then there is none for results either.
        """
        self._path = folder / BALLAST_FILE
        if self._path.is_file() and self._path.stat().st_size >= BALLAST_BYTES:
            return
        try:
            with self._path.open("wb") as file:
                file.write(bytes(BALLAST_BYTES))  # zeros that are written, not a hole
                file.flush()
                os.fsync(file.fileno())
        except OSError as err:
            self._path.unlink(missing_ok=True)
            raise OSError(err.errno, err.strerror, str(self._path)) from err

    def drop(self) -> bool:
        """Give the room back; whether there was any."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def kept(self, write: Callable[[], Written], *, told: Callable[[OSError], None]) -> Written:
        """What a write returns that must not be lost: where the disk is full, it is made in the ballast's room.

        Args:
            write: May be called twice.
            told: Is told of the full disk, between the two.

        Raises:
            OSError: If the disk is full and the room was given back before.
        """
        try:
            return write()
        except OSError as err:
            if not is_full(err) or not self.drop():
                raise
            told(err)
            return write()
