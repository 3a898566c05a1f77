"""Door to torch.distributed: the ranks of a trial meet without ports to guess."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from core.config import EngineConfig
from core.errors import UserError
from core.model.machine import INTERFACES, unknown_interfaces
from core.store.durable import commit

TIMEOUT = timedelta(minutes=10)
"""How long a collective lasts at most, and how long a rank that others wait for may show no sign of life."""

_LONGEST_NAP_S = 0.2
_WORD = "word"
"""What the first rank said last, in the meeting point's store."""


class Patience:
    """Ranks wait for each other in the meeting point's store, as long as all of them live.

    A collective has a deadline, which work that one rank does for all may well outlast. Here a rank that
    works says so, from a thread of its own, and may take as long as it needs.
    """

    def __init__(self, rank: int, size: int, host: str, port: int, *, silence: timedelta) -> None:
        """Say from now on that this rank lives; ``silence`` is how long another may not."""
        self._rank, self._size, self._silence = rank, size, silence
        self._n_waits = self._n_asked = 0
        self._store = TCPStore(host, port, size, is_master=False, timeout=silence)
        own = TCPStore(host, port, size, is_master=False, timeout=silence)
        threading.Thread(
            target=_say_alive, args=(own, rank, silence / 10), name="alive", daemon=True
        ).start()

    def wait(self) -> None:
        """Return when every rank has come here.

        Raises:
            RuntimeError: If a rank shows no sign of life.
        """
        self._n_waits += 1
        here = f"wait/{self._n_waits}"
        if self._store.add(f"{here}/came", 1) == self._size:
            self._store.set(f"{here}/all", "")
        signs = {rank: (-1, time.monotonic()) for rank in range(self._size)}
        nap_s = 0.001
        while not self._store.check([f"{here}/all"]):  # its own waiting would warn of each time-out
            self._look(signs)
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, _LONGEST_NAP_S)
        if self._store.add(f"{here}/left", 1) == self._size:
            for name in ("came", "all", "left"):
                self._store.delete_key(f"{here}/{name}")

    def ends(self, is_asked: bool) -> bool:
        """Whether the first rank was asked to end when it came here; the others wait for its word.

        It says "go on" once for every time that it comes here, and a count that is ahead of a rank's own says it,
        too: after "end" it says nothing more before all ranks have met.

        Raises:
            RuntimeError: If a rank shows no sign of life.
        """
        self._n_asked += 1
        word = "end" if is_asked else "go on"
        if self._rank == 0:
            self._store.set(_WORD, f"{self._n_asked} {word}")
            return is_asked
        signs = {rank: (-1, time.monotonic()) for rank in range(self._size)}
        nap_s = 0.0001
        while True:
            said = self._store.get(_WORD).decode() if self._store.check([_WORD]) else "0 go on"
            count, _, word = said.partition(" ")
            if int(count) >= self._n_asked:
                return int(count) == self._n_asked and word == "end"
            self._look(signs)
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, _LONGEST_NAP_S)

    def _look(self, signs: dict[int, tuple[int, float]]) -> None:
        """Take notice of each rank's signs of life: how many, and since when no more."""
        now = time.monotonic()
        for rank, (known, since) in signs.items():
            count = self._store.add(_sign_of(rank), 0)
            if count != known:
                signs[rank] = (count, now)
            elif now - since > self._silence.total_seconds():
                raise RuntimeError(
                    f"rank {rank} has shown no sign of life for {self._silence.total_seconds():g} s, while others "
                    "wait for it"
                )


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _sign_of(rank: int) -> str:
    return f"alive/{rank}"


def _say_alive(store: TCPStore, rank: int, every: timedelta) -> None:
    try:
        while True:
            store.add(_sign_of(rank), 1)
            time.sleep(every.total_seconds())
    except dist.DistError:
        return  # the meeting point is gone, and the trial with it


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks of one trial."""

    rank: int
    size: int
    patience: Patience | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks for the trial."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks; every rank gets the same bits."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return when every rank has come here, however long one works for all; no collective waits."""
        if self.patience is not None:
            self.patience.wait()

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank; the others wait for it as long as it takes."""
        if self.size == 1:
            return value
        self.wait()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank; they wait for each other as long as it takes."""
        if self.size == 1:
            return [value]
        self.wait()
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def ends(self, is_asked: bool) -> bool:
        """Whether the first rank is asked to end, on every rank; the others hear it without a collective."""
        return is_asked if self.patience is None else self.patience.ends(is_asked)

    def hand_out(self, names: Iterable[str], root: Path) -> None:
        """Copy the first rank's files to every machine that lacks one.

        Args:
            names: Of files below ``root``; the first rank's count.
            root: A folder that machines may share, or have each their own.
        """
        if self.size == 1:
            return
        wanted = [name for name in self.agree(sorted(set(names))) if not (root / name).exists()]
        lists: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, wanted)
        for name in sorted({name for missing in lists for name in missing}):
            content = self.agree((root / name).read_bytes() if self.is_first else None)
            if name in wanted:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                commit(root / name, partial(_write, content))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with the first rank's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share_parts(self, parts: Sequence[Tensor]) -> None:
        """Overwrite each part, one for a rank, with what that rank has of it."""
        if self.size > 1:
            for rank, part in enumerate(parts):
                dist.broadcast(part, src=rank)

    def mine(self, count: int) -> range:
        """Indices of this rank's items out of ``count``, dealt out in turn."""
        return range(self.rank, count, self.size)


_MEETINGS: "list[Rendezvous]" = []


class Rendezvous:
    """A key-value store on a free port of the first rank's machine, where the ranks of one trial meet."""

    def __init__(self, size: int, *, host: str = "127.0.0.1") -> None:
        """Open the store; the operating system picks the port, so that two trials never collide.

        Args:
            size: Number of ranks that will come.
            host: This machine's address, as the other ranks reach it.
        """
        self.host = host
        self._store = TCPStore(
            self.host, 0, size, is_master=True, wait_for_workers=False, timeout=TIMEOUT
        )
        self.port: int = self._store.port
        _MEETINGS.append(self)  # ranks talk to it as long as their processes live


def join(
    rank: int,
    size: int,
    host: str,
    port: int,
    engine: EngineConfig,
    *,
    local_rank: int | None = None,
    timeout: timedelta = TIMEOUT,
) -> Group:
    """Join the other ranks; call once in a process.

    Args:
        rank: This process's number.
        size: Number of ranks.
        host: Host of the :class:`Rendezvous`, which must outlive the group.
        port: Its port.
        engine: Device and threads.
        local_rank: Number on this machine; 0 where each process sees only its own GPU.
        timeout: Deadline of a collective, in which all ranks are expected to come at once; :meth:`Group.wait`
            has none while all ranks live.

    Raises:
        UserError: If ``GLOO_SOCKET_IFNAME`` names a network interface that this machine has not.
    """
    unknown = unknown_interfaces()
    if unknown:
        raise UserError(
            f"{INTERFACES}: must name network interfaces of this machine, got {', '.join(unknown)}; unset it, or "
            "let `unlearn-tune doctor` list them"
        )
    local = rank if local_rank is None else local_rank
    # of a launcher around this process; DeepSpeed would insist on it
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(local),
        LOCAL_SIZE=str(size),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(engine.threads)
    use_cuda = engine.device != "cpu" and torch.cuda.is_available()
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not dist.is_initialized():
        if use_cuda:
            torch.cuda.set_device(local % torch.cuda.device_count())
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            store=TCPStore(host, port, size, is_master=False, timeout=timeout),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        with redirect_stdout(sys.stderr):  # stdout is for results
            deepspeed().init_distributed(dist_backend="nccl" if use_cuda else "gloo", verbose=False)
        dist.barrier()
    if size == 1:
        return Group(rank=rank, size=size)
    return Group(rank=rank, size=size, patience=Patience(rank, size, host, port, silence=timeout))


@lru_cache
def _own_meeting() -> Rendezvous:
    """This process's meeting point with itself: torch talks to it as long as the process lives."""
    return Rendezvous(1)


def join_alone(engine: EngineConfig) -> tuple[Group, Rendezvous]:
    """A group of this process alone."""
    meeting = _own_meeting()
    return join(0, 1, meeting.host, meeting.port, engine, local_rank=0), meeting


def deepspeed() -> Any:
    """The library, imported late: it looks at the environment that :func:`join` prepares. It compiles nothing.

    On a CPU it would build an operator that sums over ranks in its inference, which nothing here does: that needs
    a compiler, waits for ever at a lock that a killed process left, and takes 66 MiB of shared memory a rank.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # of its operators, those that may be built
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def zero_options(engine: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's ``zero_optimization``: what the ranks hold parts of, and where."""
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return zero
