"""The library that fails system calls, built and preloaded, and how a fault is asked of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
_PRELOADED = "LD_PRELOAD"


class Mode(IntEnum):
    """What happens at the system call that is hit; the numbers are those of the library."""

    NOTHING = 0
    FAIL = 1
    SHORT = 2
    KILL_BEFORE = 3
    KILL_AFTER = 4
    KILL_HALFWAY = 5

    @property
    def kills(self) -> bool:
        """Whether the process that makes the call is killed."""
        return self >= Mode.KILL_BEFORE


@dataclass(frozen=True, kw_only=True)
class CallFault:
    """A fault in the writing system calls below a folder.

    Attributes:
        at: Number of the call, from 1, counted over a driver and its trials.
        times: How many calls in a row fail.
        mode: What happens.
        error: ``errno`` of a call that fails.
    """

    at: int
    mode: Mode
    error: int = 0
    times: int = 1


class Shim:
    """The library, as it is loaded into this process."""

    def __init__(self) -> None:
        """Find it; :func:`preloaded` must have come first."""
        self._library = ctypes.CDLL(None)
        self._library.faults_hit.restype = ctypes.c_char_p
        for name in ("faults_calls", "faults_fired", "faults_event"):
            getattr(self._library, name).restype = ctypes.c_long

    def separate(self) -> None:
        """From now on, count apart from the process that forked this one."""
        self._library.faults_begin()

    def reset(self, folder: Path, fault: CallFault | None = None) -> None:
        """Count from 0 what is called below ``folder``, by processes that join, and have it fail."""
        fault = fault or CallFault(at=0, mode=Mode.NOTHING)
        where = os.fsencode(folder.resolve())
        self._library.faults_reset(
            where,
            ctypes.c_long(fault.at),
            ctypes.c_long(fault.times),
            int(fault.mode),
            fault.error,
        )

    def join(self, *, skew_s: int = 0) -> None:
        """This process and those that it forks count from now on; their wall clock is wrong by ``skew_s``."""
        self._library.faults_skew(ctypes.c_long(skew_s))
        self._library.faults_join(1)

    def event(self) -> int:
        """Number of an event of the test's own, from 1."""
        return int(self._library.faults_event())

    @property
    def calls(self) -> int:
        """System calls counted since the reset."""
        return int(self._library.faults_calls())

    @property
    def fired(self) -> int:
        """System calls hit since the reset."""
        return int(self._library.faults_fired())

    @property
    def hit(self) -> str:
        """The first call that was hit, and of which file; empty if none was."""
        return os.fsdecode(self._library.faults_hit())


def why_not() -> str | None:
    """Why system calls cannot be failed here; ``None`` if they can."""
    if not sys.platform.startswith("linux"):
        return f"system calls are failed on Linux only, not on {sys.platform}"
    return None if _compiler() else "a C compiler is needed (cc, gcc or clang), and none is here"


def preloading(folder: Path) -> dict[str, str]:
    """The environment of a process that loads the library, which is built in ``folder``."""
    library = folder / "faults.so"
    compiler = _compiler()
    assert compiler is not None
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return {**os.environ, _PRELOADED: str(library)}


def is_preloaded() -> bool:
    """Whether this process has loaded it; its file is removed then, and other programs do not look for it."""
    library = Path(os.environ.get(_PRELOADED, ""))
    if library.name != "faults.so":
        return False
    del os.environ[_PRELOADED]
    shutil.rmtree(library.parent)
    return True


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
