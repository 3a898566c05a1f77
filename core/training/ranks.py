"""Door to torch.distributed: the ranks of a trial meet without ports to guess."""

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from core.config import EngineConfig

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks of one trial."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks for the trial."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks; every rank gets the same bits."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with the first rank's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mine(self, count: int) -> range:
        """Indices of this rank's items out of ``count``, dealt out in turn."""
        return range(self.rank, count, self.size)


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
            self.host, 0, size, is_master=True, wait_for_workers=False, timeout=_TIMEOUT
        )
        self.port: int = self._store.port


def join(
    rank: int,
    size: int,
    host: str,
    port: int,
    engine: EngineConfig,
    *,
    local_rank: int | None = None,
) -> Group:
    """Join the other ranks; call once in a process.

    Args:
        rank: This process's number.
        size: Number of ranks.
        host: Host of the :class:`Rendezvous`, which must outlive the group.
        port: Its port.
        engine: Device and threads.
        local_rank: Number on this machine; 0 where each process sees only its own GPU.
    """
    local = rank if local_rank is None else local_rank
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
            store=TCPStore(host, port, size, is_master=False, timeout=_TIMEOUT),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
        with redirect_stdout(sys.stderr):  # it prints what it compiles; stdout is for results
            deepspeed().init_distributed(dist_backend="nccl" if use_cuda else "gloo", verbose=False)
        dist.barrier()
        _release_shared_memory(rank, host, port)
    return Group(rank=rank, size=size)


def _release_shared_memory(rank: int, host: str, port: int) -> None:
    """Take the name from DeepSpeed's CPU buffer, which every rank has mapped by now.

    It would stay in memory, 66 MiB a rank, after the process: DeepSpeed never removes it.
    """
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{host}_{port}_{rank}"
    (Path("/dev/shm") / name).unlink(missing_ok=True)  # noqa: S108 - where POSIX names live


@lru_cache
def _own_meeting() -> Rendezvous:
    """This process's meeting point with itself: torch talks to it as long as the process lives."""
    return Rendezvous(1)


def join_alone(engine: EngineConfig) -> tuple[Group, Rendezvous]:
    """A group of this process alone."""
    meeting = _own_meeting()
    return join(0, 1, meeting.host, meeting.port, engine, local_rank=0), meeting


def deepspeed() -> Any:
    """The library, imported late: it looks at the environment that :func:`join` prepares."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
