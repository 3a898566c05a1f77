"""Trials of one run, or of several on the same model and data, as one set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.errors import UserError
from tuning.config import Dimension, FloatRange, IntRange
from tuning.records import TrialRecord
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Trials of several runs over fields that all of them search.

    Attributes:
        runs: The runs, in the order given.
        space: Fields that all of them search, with ranges that hold all of theirs.
        trials: All their trials, numbered through; :meth:`label` tells which they are.
        apart: Fields that only some of the runs search.
    """

    runs: tuple[Run, ...]
    space: Mapping[str, Dimension]
    trials: tuple[TrialRecord, ...]
    apart: tuple[str, ...]

    def label(self, number: int) -> str:
        """The trial of a number as a person finds it: ``7``, or ``demo 7`` where there are several runs."""
        run, own = self.origin(number)
        return str(own) if len(self.runs) == 1 else f"{run.name} {own}"

    def origin(self, number: int) -> tuple[Run, int]:
        """Run of a trial, and its number there."""
        for run in self.runs:
            if number < len(run.trials):
                return run, number
            number -= len(run.trials)
        raise IndexError(number)


def pooled(runs: Sequence[Run]) -> Pool:
    """The trials of runs that are about the same thing.

    Raises:
        UserError: If there is no run, two are one, one repeats configurations over seeds, or they differ in what was
            measured: model, data, objective or limits.
    """
    if not runs:
        raise UserError("RUN: name at least one run folder, such as runs/demo")
    for run in runs:
        if run.is_repetition:
            raise UserError(
                f"{run.path}: repeats configurations over seeds and searches nothing; give the run that it repeats "
                f"(what it found itself: unlearn-tune best {run.path})"
            )
    first = runs[0]
    seen = {first.path.resolve()}
    for run in runs[1:]:
        if run.path.resolve() in seen:
            raise UserError(f"{run.path}: is given twice; name each run once")
        seen.add(run.path.resolve())
        differs = measured_otherwise(first, run)
        if differs:
            raise UserError(
                f"{run.path}: differs from {first.path} in {', '.join(differs)}; trials can be judged together only "
                "on one model, data, objective and limits, so give these runs one at a time"
            )
    shared = [name for name in first.spec.space if all(name in run.spec.space for run in runs)]
    every = dict.fromkeys(name for run in runs for name in run.spec.space)
    trials: list[TrialRecord] = []
    for run in runs:
        trials += [replace(t, number=len(trials) + t.number) for t in run.trials]
    return Pool(
        runs=tuple(runs),
        space={name: _union([run.spec.space[name] for run in runs]) for name in shared},
        trials=tuple(trials),
        apart=tuple(name for name in every if name not in shared),
    )


def measured_otherwise(one: Run, other: Run) -> list[str]:
    """What makes the values of two runs not comparable: model, rows, objective, limits."""
    ours, theirs = one.facts.identity, other.facts.identity
    found = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if one.spec.objective != other.spec.objective:
        found.append("objective")
    if one.spec.constraints != other.spec.constraints:
        found.append("constraints")
    return found


def _union(dimensions: Sequence[Dimension]) -> Dimension:
    """A range that holds all given ones; the first's words."""
    first = dimensions[0]
    if all(d.categorical is not None for d in dimensions):
        choices = dict.fromkeys(c for d in dimensions for c in d.categorical or ())
        return first.model_copy(update={"categorical": tuple(choices)})
    ranges = [d.float_range or d.int_range for d in dimensions]
    range_ = first.float_range or first.int_range
    found = [r for r in ranges if r is not None]
    if range_ is None or len(found) < len(ranges):  # choices in one run, a range in another
        return first
    ends = {"low": min(r.low for r in found), "high": max(r.high for r in found)}
    if isinstance(range_, FloatRange):
        return first.model_copy(update={"float_range": range_.model_copy(update=ends)})
    assert isinstance(range_, IntRange)
    return first.model_copy(update={"int_range": range_.model_copy(update=ends)})
