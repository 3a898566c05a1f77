"""Which process drives a run, and whether it is gone as far as this machine can know."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from core.errors import FileError
from core.store.texts import read_text
from tuning.records import now

_STARTED = (
    19  # of the fields after the command's name in /proc/PID/stat: ticks since the machine began
)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process on some host.

    Attributes:
        host: Name of the host.
        pid: Number of the process there.
        machine: This boot of the host, and the namespace in which the number counts; another container has another one.
        started: Ticks of the machine at which the process began; tells it from a later one of the same number.
        since: UTC time since when it drives the run, by its own clock: for display only.
    """

    host: str
    pid: int
    machine: str
    started: str
    since: str

    def __str__(self) -> str:
        """For messages."""
        return f"pid {self.pid} on {self.host} since {self.since}"

    @classmethod
    def of_this_process(cls) -> "Holder":
        """The calling process, from now on."""
        pid = os.getpid()
        return cls(
            host=platform.node(),
            pid=pid,
            machine=_machine(),
            started=_started(pid) or "",
            since=now(),
        )

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be gone: it ran on this boot of this machine, and runs no more."""
        return self.machine == _machine() and _started(self.pid) != self.started


def _machine() -> str:
    boot = read_text(Path("/proc/sys/kernel/random/boot_id")).strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str | None:
    """When a process of this machine began; ``None`` if there is none."""
    try:
        found = read_text(Path(f"/proc/{pid}/stat"))
    except FileError:
        return None
    state, *fields = found.rpartition(")")[2].split()
    return None if state in "ZX" else fields[_STARTED - 1]
