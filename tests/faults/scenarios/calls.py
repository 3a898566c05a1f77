"""System calls that fail: each call that writes, of a driver and its trials, from its first file to its last."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from faults.bench import Bench
from faults.driver import Life
from faults.shim import CallFault, Mode
from faults.study import sweep
from faults.tally import Tally
from tuning.config import SweepSpec

_TILL_THE_END = 1_000_000


def _tiny() -> SweepSpec:
    return sweep(trials=2, steps=2)


def _at_every_call(
    bench: Bench, tally: Tally, fault: Callable[[int], CallFault], *, step: int = 1
) -> None:
    """One sweep for each position, until a sweep has no call of that number. One trial at a time: one order."""
    for k in bench.from_first(step):
        with bench.case(_tiny(), tally, f"call {k}") as case:
            ended = case.live(Life(slots=1, calls=fault(k)))
            case.finish()
        if not ended.hit:
            return


def fails(bench: Bench, tally: Tally) -> None:
    """The k-th call fails: by turns the disk is full, and broken."""
    _at_every_call(
        bench,
        tally,
        lambda k: CallFault(at=k, mode=Mode.FAIL, error=errno.EIO if k % 2 else errno.ENOSPC),
    )


def half_written(bench: Bench, tally: Tally) -> None:
    """A half of the k-th write is made, and the next one finds the disk full."""
    _at_every_call(
        bench,
        tally,
        lambda k: CallFault(at=k, mode=Mode.SHORT, error=errno.ENOSPC, times=2),
        step=3,
    )


def killed_within(bench: Bench, tally: Tally) -> None:
    """The process that makes the k-th call is killed: within a write, else right after it (say before the rename)."""
    _at_every_call(bench, tally, lambda k: CallFault(at=k, mode=Mode.KILL_HALFWAY))


def disk_stays_full(bench: Bench, tally: Tally) -> None:
    """From the k-th call on every call fails; room is made before the resume."""
    _at_every_call(
        bench,
        tally,
        lambda k: CallFault(at=k, mode=Mode.FAIL, error=errno.ENOSPC, times=_TILL_THE_END),
        step=13,
    )


SCENARIOS: Mapping[str, Callable[[Bench, Tally], None]] = {
    "every writing call fails": fails,
    "write cut in half, then disk full": half_written,
    "killed in every writing call": killed_within,
    "disk full for good": disk_stays_full,
}
