"""Why an attempt at a trial broke, and what is done about it: another attempt, with less at a time, or none.

What counts against ``budget.max_attempts`` is what the trial may have done itself: not a full disk, and not a machine
that was taken away, up to :data:`MOST_LOST` times.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.config import BatchConfig, TrialConfig
from core.errors import FileError, UserError
from core.store.durable import commit_json
from core.store.texts import read_json
from tuning.limits import TrialTimeoutError

Exhausted = Literal["gpu", "machine", "disk"]
"""What was not enough: memory of a GPU, memory of the machine, or room on a disk."""
Remedy = Literal["micro_batch", "concurrency"]


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Machines of a cluster at a moment, as it calls them.

    Attributes:
        living: All that answer.
        leaving: Those of them that are about to be taken away.
    """

    living: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()

    def lost(self, now: "Machines") -> list[str]:
        """Those that are no longer there, or will not be; also what was leaving then already."""
        return sorted(self.living - (now.living - now.leaving))


FAILURE_FILE = "failure.json"
TIMED_OUT = TrialTimeoutError.__name__
"""Class of the error of an attempt that took longer than ``budget.trial_timeout_s``."""
MOST_LOST = 10
"""Attempts at a trial that may be lost with their machine before they count as the trial's own failures."""

_ON_GPU = re.compile(r"CUDA out of memory|CUDA error: out of memory|HIP out of memory")
_ON_MACHINE = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|Cannot allocate memory|std::bad_alloc"
)
_ON_DISK = re.compile(r"No space left on device|Disk quota exceeded|\(os error (28|122)\)")
_BY_RAY = re.compile(r"(killed|terminated)[^.]*(low memory|memory pressure|running low on memory)")


def exhausted(kind: str, message: str, *, kernel_killed: bool = False) -> Exhausted | None:
    """Whose memory, or which disk's room, an error tells of, or ``None``.

    Args:
        kind: Class of the error.
        message: What it says, whole.
        kernel_killed: The kernel has killed a process for want of memory meanwhile.
    """
    if _ON_DISK.search(message):
        return "disk"
    if _ON_GPU.search(message):
        return "gpu"
    if kind == "MemoryError" or _ON_MACHINE.search(message):
        return "machine"
    if kind == "OutOfMemoryError":  # Ray's, when its monitor killed a process; torch's names CUDA
        return "machine"
    died = kind in ("ActorDiedError", "RayActorError", "WorkerCrashedError", "Died")
    return "machine" if died and (kernel_killed or _BY_RAY.search(message)) else None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An attempt that broke, as its folder records it.

    Attributes:
        kind: Class of the error.
        reason: Class and message; of one that ended the trial, what it was told.
        is_user_error: Another attempt would end in the same way.
        exhausted: Whose memory, or room, was not enough, if that is why.
        remedy: What the next attempt does otherwise.
        place: File that could not be written, where the error names one.
        nodes: The machines that its ranks were on; empty if nobody said.
        lost_node: The machine that was taken away meanwhile, if one was.
        is_final: The trial was given up with it.
    """

    kind: str
    reason: str
    is_user_error: bool
    exhausted: Exhausted | None
    remedy: Remedy | None
    place: str | None = None
    nodes: tuple[str, ...] = ()
    lost_node: str | None = None
    is_final: bool = False

    @property
    def lacks_memory(self) -> bool:
        """Whether less at a time may help."""
        return self.exhausted in ("gpu", "machine")


def read_failure(folder: Path) -> Failure:
    """The failure of an attempt; one that left no word died.

    Raises:
        FileError: If the file is damaged.
    """
    path = folder / FAILURE_FILE
    if not path.is_file():
        message = "its process died without a word (killed, or out of memory)"
        commit_json(path, {"kind": "Died", "message": message, "is_user_error": False})
    record: dict[str, Any] = read_json(path)
    try:
        return Failure(
            kind=str(record["kind"]),
            reason=record.get("reason") or f"{record['kind']}: {record['message']}",
            is_user_error=bool(record["is_user_error"]),
            exhausted=record.get("exhausted"),
            remedy=record.get("remedy"),
            place=record.get("place"),
            lost_node=record.get("lost_node"),
            nodes=tuple(map(str, record.get("nodes", ()))),
            is_final=bool(record.get("is_final", False)),
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise FileError(
            str(path),
            f"is not what a sweep wrote ({type(err).__name__}: {err}); restore it from a copy, or delete it",
        ) from err


def known_failures(attempts: Iterable[Path]) -> Iterator[Failure]:
    """What is known of attempts in these folders that broke; a damaged word is none."""
    for folder in attempts:
        if (folder / FAILURE_FILE).is_file():
            with suppress(UserError):
                yield read_failure(folder)


def n_counted(failures: Sequence[Failure]) -> int:
    """How many of a trial's failures count against ``budget.max_attempts``."""
    own = sum(f.lost_node is None and f.exhausted != "disk" for f in failures)
    lost = sum(f.lost_node is not None for f in failures)
    return own + max(0, lost - MOST_LOST)


def record_final(folder: Path, reason: str, *, kind: str) -> None:
    """Keep that the trial was given up, and why, before the ledger is told.

    Args:
        folder: Of its last attempt.
        reason: What the ledger will say.
        kind: Class of the error, where the attempt left none.
    """
    path = folder / FAILURE_FILE
    found = (
        read_json(path)
        if path.is_file()
        else {"kind": kind, "message": reason, "is_user_error": False}
    )
    commit_json(path, found | {"is_final": True, "reason": reason})


def record_lack_of_room(folder: Path) -> None:
    """Keep that an attempt broke beside a full disk."""
    path = folder / FAILURE_FILE
    commit_json(path, read_json(path) | {"exhausted": "disk"})


def record_lost_node(folder: Path, node: str) -> None:
    """Keep that the attempt was lost with its machine."""
    path = folder / FAILURE_FILE
    commit_json(path, read_json(path) | {"lost_node": node})


def record_remedy(folder: Path, remedy: Remedy) -> None:
    """Keep what the next attempt does otherwise, so that a resumed sweep does it too."""
    path = folder / FAILURE_FILE
    commit_json(path, read_json(path) | {"remedy": remedy})


def remedies(attempts: Iterable[Path]) -> set[Remedy]:
    """What was done otherwise after attempts in these folders."""
    found = (failure.remedy for failure in known_failures(attempts))
    return {remedy for remedy in found if remedy is not None}


def choose_remedy(
    failure: Failure, trial: TrialConfig, *, concurrent: int, before: int
) -> Remedy | None:
    """What to do about memory that was not enough; ``None`` if nothing is left to do.

    Args:
        failure: The failure.
        trial: The attempt's trial.
        concurrent: Trials that ran at the same time.
        before: Attempts at this trial that memory broke before.
    """
    if before:
        return None
    if failure.exhausted == "machine" and concurrent > 1:
        return "concurrency"
    return None if halved(trial) is None else "micro_batch"


def halved(trial: TrialConfig) -> TrialConfig | None:
    """The same trial with half as many rows in a forward pass; ``None`` if a pass cannot be halved.

    The optimiser's steps are the same: gradients are accumulated over twice as many passes. Probes read half
    as many rows at a time, too.
    """
    batch = trial.batch
    rows = batch.micro_batch_size
    if rows is None:
        if batch.whole_forget_set:
            return None  # only the data say how many rows
        rows = trial.batch_plan().micro_batch_size
    if rows % 2:
        return None
    total = None if batch.whole_forget_set else trial.batch_plan().global_batch_size
    smaller = BatchConfig(
        global_batch_size=total,
        micro_batch_size=rows // 2,
        whole_forget_set=batch.whole_forget_set,
        probe_batch_size=max(1, batch.probe_batch_size // 2),
    )
    return trial.model_copy(update={"batch": smaller})
