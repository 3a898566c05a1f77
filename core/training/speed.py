"""How long an optimiser step takes, by how many trials share it: what ``engine.packing: auto`` decides by."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import torch

from core.config import TrialConfig
from core.training.place import SharedPack, own_engine
from core.training.ranks import Group
from core.training.steps import Steps
from core.training.warm import Warm

NO_LONGER_FALLS = 0.97
"""Share of the best so far that a larger pack must come below for a still larger one to be looked at."""

_N_BEFORE, _N_TIMED = 2, 3


def seconds_by_size(
    trial: TrialConfig,
    sizes: Sequence[int],
    *,
    warm: Warm,
    group: Group,
    fits: Callable[[int], bool] = lambda _: True,
) -> dict[int, float]:
    """Seconds of a step for each of the trials that make it together, by their number.

    Args:
        trial: What all of them are, but for their seeds.
        sizes: Numbers of trials, rising; 1 is a trial with an engine of its own.
        warm: What the process keeps.
        group: A group of this process alone.
        fits: Whether memory is enough for so many.

    Returns:
        As far as time falls and memory is enough; always of the first.
    """
    found: dict[int, float] = {}
    for size in sizes:
        if found and not fits(size):
            break
        try:
            seconds = time_steps(trial, size, warm=warm, group=group).seconds / size
        except torch.OutOfMemoryError:
            break
        falls = not found or seconds < NO_LONGER_FALLS * min(found.values())
        found[size] = seconds
        if not falls:
            break
    return found


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Of an optimiser step: by the clock, and of this process's CPUs."""

    seconds: float
    cpu_seconds: float


def time_steps(trial: TrialConfig, size: int, *, warm: Warm, group: Group) -> StepTime:
    """Median times of a step of ``size`` trials like one, together; of one with an engine of its own."""
    n_steps = _N_BEFORE + _N_TIMED
    selection = trial.selection.model_copy(update={"max_steps": n_steps})
    trials = [
        trial.model_copy(update={"seed": trial.seed + i, "selection": selection})
        for i in range(size)
    ]
    known = warm.outlined if trial.partitions == "base" else warm
    steps = [Steps(t, known.model(t), known.data(t)) for t in trials]
    for own in steps:
        own.prepare()
    with ExitStack() as ends:
        if size == 1:
            place = own_engine(trials[0], warm, steps[0], group=group)
            ends.callback(place.leave)
        else:
            pack = SharedPack(trials, n_slots=size, group=group)
            ends.callback(pack.close)
            for i, (t, own) in enumerate(zip(trials, steps, strict=True)):
                pack.place(t, warm, own, number=i)

        def step() -> None:
            if size == 1:
                place.step(steps[0].next_step(group))
            else:
                pack.step({i: own.next_step(group) for i, own in enumerate(steps)})
            for own in steps:
                own.after_step(group)

        for _ in range(_N_BEFORE):
            step()
        times = [_timed(step) for _ in range(_N_TIMED)]
        return StepTime(
            seconds=median(t.seconds for t in times),
            cpu_seconds=median(t.cpu_seconds for t in times),
        )


def _timed(step: Callable[[], None]) -> StepTime:
    _finish_kernels()
    began, cpu = time.perf_counter(), time.process_time()
    step()
    _finish_kernels()
    return StepTime(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - cpu)


def _finish_kernels() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
