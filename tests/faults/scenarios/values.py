"""What a trial measures is no number, or not there; and memory that is not enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from faults.bench import Bench
from faults.driver import Life
from faults.study import sweep
from faults.tally import Tally
from faults.trial import soundly
from tuning.dispatcher import Assignment

_LACKING = object()
_BAD: Mapping[str, tuple[str, Any]] = {
    "closure NaN": ("forget_closure", math.nan),
    "closure inf": ("forget_closure", math.inf),
    "closure -inf": ("forget_closure", -math.inf),
    "cross-entropy NaN": ("forget_nll", math.nan),
    "drop NaN": ("retain_drop", math.nan),
    "drop -inf": ("retain_drop", -math.inf),
    "None": ("forget_closure", None),
    "a string": ("forget_closure", "0.9"),
    "a list": ("forget_closure", [0.9, 0.8]),
    "no key": ("forget_closure", _LACKING),
}
_NUMBER = 1
"""The trial that meets the fault."""


def bad_values(bench: Bench, tally: Tally) -> None:
    """One trial measures something that is no number: it is told as what it is, and never the best."""
    spec, names = sweep(trials=4, steps=3), list(_BAD)
    for index in bench.mine(0, len(names) - 1):
        key, value = _BAD[names[index]]

        def measure(
            assignment: Assignment, step: int, key: str = key, value: object = value
        ) -> Mapping[str, Any]:
            found = dict(soundly(assignment, step))
            if assignment.number == _NUMBER:
                found.pop(key)
                found |= {} if value is _LACKING else {key: value}
            return found

        with bench.case(spec, tally, names[index]) as case:
            case.witness.spoils(_NUMBER)
            case.finish(Life(measure=measure))


def out_of_memory(bench: Bench, tally: Tally) -> None:
    """A trial's first attempt has not enough memory, of the GPU or of the machine: the next one takes less."""
    spec = sweep(trials=4, steps=3)
    errors: list[Exception] = [
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
    ]
    for index in bench.mine(0, len(errors) - 1):

        def measure(
            assignment: Assignment, step: int, error: Exception = errors[index]
        ) -> Mapping[str, Any]:
            if (assignment.number, assignment.attempt, step) == (_NUMBER, 1, 2):
                raise error
            return soundly(assignment, step)

        with bench.case(spec, tally, type(errors[index]).__name__) as case:
            case.live(Life(measure=measure))
            case.witness.fault(len(list(case.run_dir.glob("trials/*/attempt-1/failure.json"))))
            case.finish()


SCENARIOS: Mapping[str, Callable[[Bench, Tally], None]] = {
    "values that are no numbers": bad_values,
    "not enough memory": out_of_memory,
}
