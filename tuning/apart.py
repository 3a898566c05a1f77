"""Door to ray: ranks apart from trials, for what is prepared before them and what is measured after them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util import ActorPool

from core.errors import UserError, in_a_line
from tuning.config import SweepSpec
from tuning.handing_out import HandedOut
from tuning.trainable import start_rank

Call = Callable[[Any, Any], Any]
"""Calls ``function(warm, group, argument)`` on a rank."""

_TOGETHER_S = 60.0
"""How much later than the first of several ranks the others may start, to be used."""

CallForEach = Callable[[Any, list[Any]], Iterator[Any]]
"""The same for each of several arguments, on whichever rank is free; results as they come."""


@contextmanager
def a_rank(
    spec: SweepSpec, *, threads: int | None = None, early: Any | None = None
) -> Iterator[Call]:
    """A process that is a group of one rank and ends with the context, as what calls a function there.

    Args:
        spec: The sweep; the rank takes what one of its trials' takes.
        threads: CPU cores and threads instead.
        early: A rank that :func:`early_rank` started, to be this one.

    Raises:
        UserError: What a function raised there, as itself.
    """
    with _ranks(spec, 1, threads=threads, early=early) as (rank,):
        yield lambda function, argument: ray.get(rank.call.remote(function, argument))


def early_rank(spec: SweepSpec, *, cpus: int) -> Any:
    """Start a rank on this machine's CPU before it is known how much of it the rank may take.

    What a rank imports takes seconds: who has a question that needs torch asks the rank that prepares afterwards. It
    holds all ``cpus`` until then, and has no group.
    """
    whole = {"cpus_per_rank": cpus, "gpus_per_rank": 0.0}
    return start_rank(spec.resources.model_copy(update=whole))


@contextmanager
def several_ranks(
    spec: SweepSpec, n: int, *, handed_out: HandedOut | None
) -> Iterator[CallForEach]:
    """The same n times: groups of one rank each, with the prepared files that their nodes lack.

    Raises:
        UserError: What a function raised there, as itself.
    """
    with _ranks(spec, n, handed_out=handed_out) as started:
        pool = ActorPool(started)

        def call_for_each(function: Any, arguments: list[Any]) -> Iterator[Any]:
            found: Iterator[Any] = pool.map_unordered(
                lambda rank, argument: rank.call.remote(function, argument), arguments
            )
            return found

        yield call_for_each


@contextmanager
def _ranks(
    spec: SweepSpec,
    n: int,
    *,
    handed_out: HandedOut | None = None,
    threads: int | None = None,
    early: Any | None = None,
) -> Iterator[list[Any]]:
    resources = spec.resources
    if threads is not None:
        resources = resources.model_copy(update={"cpus_per_rank": threads})
    engine = spec.trial_engine().model_copy(update={"ranks": 1, "threads": resources.cpus_per_rank})
    started = [start_rank(resources) for _ in range(n)] if early is None else [early]
    try:
        with their_own_errors():
            opened = _opened(started)
            there, meetings = [started[i] for i in opened], opened.values()
            if handed_out is not None:
                ray.get([rank.take.remote(handed_out) for rank in there])
            ray.get(
                [
                    rank.join.remote(0, 1, host, port, engine)
                    for rank, (host, port) in zip(there, meetings, strict=True)
                ]
            )
            yield there
    finally:
        for rank in started:
            ray.kill(rank)


def _opened(started: list[Any]) -> dict[int, tuple[str, int]]:
    """Meeting points of ranks that found a place, by index: a node may have been lost since they were counted.

    The others are not waited for once the first is there, but for a moment, and are ended.
    """
    asked = [rank.open.remote(1) for rank in started]
    ray.wait(asked, num_returns=1)
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_TOGETHER_S)
    for rank, reference in zip(started, asked, strict=True):
        if reference not in ready:
            ray.kill(rank)
    return {i: ray.get(reference) for i, reference in enumerate(asked) if reference in ready}


@contextmanager
def their_own_errors() -> Iterator[None]:
    """Within the context an error of a process elsewhere is raised as itself, where a person can act on it.

    Raises:
        UserError: What a function raised there; or that the process, its node or its environment is gone.
        OSError: What the system said there, of a folder or a limit.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as err:
        if isinstance(err.cause, UserError | OSError):
            raise err.cause from None
        raise
    except ray.exceptions.RayError as err:
        raise UserError(
            f"a process that prepares or measures ended without a word: {in_a_line(err)}; most often the machine's "
            "memory was not enough: take fewer trials at a time (resources.max_concurrent), a smaller model or "
            "smaller batches, or free some memory"
        ) from err
