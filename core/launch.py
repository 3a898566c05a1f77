"""Run one trial in this process, or in as many processes as it has ranks, without Ray."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from core.config import EngineConfig, TrialConfig
from core.data.counts import Counts
from core.errors import UserError
from core.measuring.reporting import Decision, GuardReporter, Reporter
from core.measuring.selection import Probe
from core.training.ranks import Group, Rendezvous, join
from core.training.resuming import Interruption
from core.training.resuming import logger as checkpoints_log
from core.training.warm import Warm
from core.worker import TrialResult, run_trial, share_work


class _Telling:
    """Tells somebody of each probe, then lets another decide."""

    def __init__(self, decide: Reporter, tell: Callable[[Probe], None]) -> None:
        self._decide, self._tell = decide, tell

    def report(self, probe: Probe) -> Decision:
        self._tell(probe)
        return self._decide.report(probe)


class _Hearing(logging.Handler):
    """Hands on what is logged."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


@contextmanager
def _heard(log: logging.Logger, hear: Callable[[str], None]) -> Iterator[None]:
    """Within the context somebody hears what is logged, and the process's own log does not."""
    handler, before = _Hearing(hear), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before


def launch_trial(
    config: TrialConfig,
    folder: Path,
    *,
    tell: Callable[[Probe], None],
    tell_data: Callable[[Mapping[str, Counts]], None],
    warn: Callable[[str], None] = lambda _: None,
    interruption: Interruption | None = None,
) -> TrialResult:
    """Run a trial under its own retain guard, on the recorded number of ranks and threads.

    Args:
        config: The trial.
        folder: Where its history and adapter are committed.
        tell: Called with each probe, in this process.
        tell_data: Called once before, with what was read and left out of each part.
        warn: Called with what a person should know and what stops nothing.
        interruption: Attempts to go on from, and how this one is asked to end.

    Raises:
        UserError: If model or data are not as the configuration says.
        EndedEarlyError: If it was asked to end.
    """
    refuse_shared_gpu(config.engine, n_gpus=torch.cuda.device_count())
    os.environ["OMP_NUM_THREADS"] = str(config.engine.threads)
    torch.set_num_threads(config.engine.threads)
    warm = Warm()
    known = warm.outlined if config.partitions == "base" else warm  # whose whole model nobody keeps
    if known is warm:  # before others wait for this rank
        share_work(config, warm=warm, group=Group(rank=0, size=1))
    tell_data(known.data(config).counts)
    for notice in known.notices(config):
        warn(notice)
    meeting = Rendezvous(config.engine.ranks)
    others: Any = None
    if config.engine.ranks > 1:
        others = spawn(
            _other_rank,
            args=(config, meeting.host, meeting.port),
            nprocs=config.engine.ranks - 1,
            join=False,
        )
    is_finished = False
    try:
        group = join(0, config.engine.ranks, meeting.host, meeting.port, config.engine)
        reporter = _Telling(GuardReporter(config.selection), tell)
        with _heard(checkpoints_log, warn):
            result = run_trial(
                config,
                reporter,
                folder=folder,
                group=group,
                warm=warm,
                interruption=interruption,
            )
        is_finished = True
        return result
    finally:
        for process in others.processes if others is not None else ():
            if not is_finished:
                process.terminate()  # it waits for this rank
            process.join()


def refuse_shared_gpu(engine: EngineConfig, *, n_gpus: int) -> None:
    """Refuse ranks that would share a GPU, which NCCL does not take.

    Args:
        engine: Ranks and device.
        n_gpus: GPUs that this process sees.

    Raises:
        UserError: If there are fewer GPUs than ranks, and the ranks would compute on GPUs.
    """
    if engine.device == "cpu" or n_gpus == 0 or engine.ranks <= n_gpus:
        return
    raise UserError(
        f"engine.ranks: each rank needs a GPU of its own, got {engine.ranks} ranks for {n_gpus} GPUs; lower "
        "engine.ranks, or set engine.device: cpu"
    )


def _other_rank(index: int, config: TrialConfig, host: str, port: int) -> None:
    group = join(index + 1, config.engine.ranks, host, port, config.engine)
    run_trial(config, GuardReporter(config.selection), group=group)
