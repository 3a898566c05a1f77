"""What a repair does: rows of a ledger brought to what the trials committed, one trial after the other.

What the ledger says of a trial that ended is never changed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from core.errors import FileError, UserError
from core.measuring.selection import Probe
from core.store.told import RESULT_FILE
from tuning.attributes import refuse_damaged_decisions
from tuning.committed import (
    PROPOSAL_FILE,
    Proposal,
    Result,
    committed_probes,
    read_proposal,
    read_result,
)
from tuning.config import Choice, Dimension, SweepSpec
from tuning.failures import FAILURE_FILE, Failure, n_counted, read_failure
from tuning.files import read_yaml
from tuning.ledger import Ledger, refuse_unfit
from tuning.records import ENDED, LEDGER_FILE, attempt_folder, is_adapter_damaged
from tuning.space import is_active, ordered_dimensions

Found = Literal["whole", "damaged", "unreadable", "missing"]
"""How the ledger was found. A damaged one can be read, and is copied row by row."""
Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that a repair did about a trial, or could not do.

    Attributes:
        trial: Its number.
        did: What, in words.
        is_lost: Something of the trial cannot be recovered.
    """

    trial: int
    did: str
    is_lost: bool = False


@dataclass(kw_only=True)
class Repair:
    """What a repair found and did.

    Attributes:
        run: The run folder.
        place: Where its ledger lies, as it is shown.
        ledger: How its ledger was found.
        problem: What is wrong with the ledger; empty if it is whole.
        copied_to: Where it was copied before anything was changed; ``None`` if it was not changed, or not there.
        steps: What was done, trial by trial.
        notes: What holds of the run as a whole.
        is_dry: Nothing was changed.
    """

    run: Path
    place: str
    ledger: Found
    problem: str
    copied_to: Path | None = None
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_dry: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether the ledger that was made differs from the one that was found."""
        return self.ledger != "whole" or any(not step.is_lost for step in self.steps)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "run": str(self.run),
            "ledger": self.ledger,
            "problem": self.problem,
            "copied_to": None if self.copied_to is None else str(self.copied_to),
            "steps": [asdict(step) for step in self.steps],
            "notes": list(self.notes),
            "dry_run": self.is_dry,
        }

    def lines(self) -> Iterator[str]:
        """As a person reads it."""
        yield f"{self.place}: {self.ledger}" + (f": {self.problem}" if self.problem else "")
        if self.copied_to is not None:
            yield f"{self.run / LEDGER_FILE}: copied to {self.copied_to} before anything was changed"
        for step in self.steps:
            yield f"trial {step.trial}: {step.did}"
        yield from self.notes
        if not self.is_needed:
            yield "nothing to repair"
        elif self.is_dry:
            yield f"nothing was changed; do it with: unlearn-tune repair {self.run}"
        else:
            yield f"go on with: unlearn-tune resume {self.run}"


def mend(
    spec: SweepSpec, ledger: Ledger, made: Repair, before: Mapping[int, str], *, is_new: bool
) -> None:
    """Bring a ledger to what the trials' folders say.

    Args:
        spec: The sweep.
        ledger: Written.
        made: What was done is added to it.
        before: The state of each trial, by number, as it was known.
        is_new: The ledger has nothing but what this gives it.
    """
    folders = {
        int(p.name): p
        for p in (made.run / "trials").glob("[0-9]*")
        if p.name.isdecimal() and p.is_dir()
    }
    for number, folder in sorted(folders.items()):
        made.steps += _mended(spec, ledger, number, _Committed.read(spec, folder))
    after = ledger.states()
    for number, state in sorted(before.items()):
        if state in ENDED and after.get(number) != state:
            said = (
                f"was {state}, and neither its row nor its result can be read: it is asked for anew"
            )
            made.steps.append(Step(trial=number, did=said, is_lost=True))
    if is_new:
        _note_the_rest(spec, ledger, made)


def _note_the_rest(spec: SweepSpec, ledger: Ledger, made: Repair) -> None:
    n_begun = ledger.n_begun()
    target = max(spec.budget.trials, n_begun)
    ledger.set_note("target", target)
    made.notes += [
        f"the sweep goes on to {target} trials; if it had been extended, give `resume --trials K`",
        "not recovered, and measured again by `resume`: finalists on the reporting split",
        "not recovered: how long earlier drivers have worked",
    ]


@dataclass(frozen=True, kw_only=True)
class _Committed:
    """What the folder of a trial holds.

    Attributes:
        attempts: Folders by attempt, in order.
        proposal: What it was born with; ``None`` if no file says it.
        result: What was told of it, and after which attempt.
        probes: That each attempt committed.
        failures: Of its attempts.
        problems: Files that cannot be read.
    """

    attempts: Mapping[int, Path]
    proposal: Proposal | None
    result: tuple[int, Result] | None
    probes: Mapping[int, list[Probe]]
    failures: Mapping[int, Failure]
    problems: tuple[str, ...]

    @classmethod
    def read(cls, spec: SweepSpec, folder: Path) -> "_Committed":
        """Read them; a file that cannot be read is one of the problems, and counts as absent."""
        problems: list[str] = []

        def found(read: Callable[[], Kind]) -> Kind | None:
            try:
                return read()
            except UserError as err:
                problems.append(str(err))
            return None

        numbers = {p: p.name.removeprefix("attempt-") for p in folder.glob("attempt-*")}
        attempts = {int(n): p for p, n in numbers.items() if n.isdecimal() and p.is_dir()}
        attempts = dict(sorted(attempts.items()))
        run_dir, number = folder.parents[1], int(folder.name)
        proposal = found(partial(_proposal, spec, folder))
        results, failures = dict[int, Result](), dict[int, Failure]()
        for attempt, path in attempts.items():
            if proposal is None:
                proposal = found(partial(_from_trial, spec, path))
            result = found(partial(_result, run_dir, number, attempt))
            if result is not None:
                results[attempt] = result
            failure = found(partial(_failure, path))
            if failure is not None:
                failures[attempt] = failure
        return cls(
            attempts=attempts,
            proposal=proposal,
            result=max(results.items(), default=None, key=lambda item: item[0]),
            probes={n: found(partial(committed_probes, p)) or [] for n, p in attempts.items()},
            failures=failures,
            problems=tuple(problems),
        )

    def given_up(self, max_attempts: int) -> str | None:
        """Why the trial was given up; ``None`` if another attempt would be made."""
        last = self.failures.get(max(self.attempts, default=0))
        if last is None:
            return None
        is_final = last.is_final or last.is_user_error
        is_final = is_final or n_counted(list(self.failures.values())) >= max_attempts
        return last.reason if is_final else None


def _failure(attempt: Path) -> Failure | None:
    return read_failure(attempt) if (attempt / FAILURE_FILE).is_file() else None


def _result(run_dir: Path, number: int, attempt: int) -> Result | None:
    """What was told after an attempt, if it can be told again.

    Raises:
        FileError: If it cannot, or its adapter is not the one that it saved.
    """
    folder = run_dir / attempt_folder(number, attempt)
    found = read_result(folder)
    if found is None:
        return None
    try:
        if found.outcome.state not in ("COMPLETE", "PRUNED"):
            raise ValueError(f"state: COMPLETE or PRUNED is expected, got {found.outcome.state!r}")
        refuse_unfit(found.outcome)
        refuse_damaged_decisions(number, found.decisions)
    except ValueError as err:
        raise FileError(str(folder / RESULT_FILE), f"is not what a sweep wrote ({err})") from err
    if found.adapter is not None and _is_other(run_dir, number, attempt):
        raise FileError(str(folder / "adapter"), "is not what the attempt saved")
    return found


def _is_other(run_dir: Path, number: int, attempt: int) -> bool:
    """Whether an adapter is surely another one; of a damaged history nobody knows."""
    with suppress(FileError):
        return is_adapter_damaged(run_dir, number, attempt)
    return False


def _proposal(spec: SweepSpec, folder: Path) -> Proposal | None:
    """What a trial was born with, if the sweep could propose it.

    Raises:
        FileError: If it could not.
    """
    found = read_proposal(folder)
    if found is None:
        return None
    path = folder / PROPOSAL_FILE
    params = _params(spec, found.params.get, path)
    if params != found.params:
        other = sorted(found.params.keys() ^ params.keys()) or sorted(params)
        raise FileError(str(path), f"{other[0]}: is no value of the sweep; restore it from a copy")
    return found


def _from_trial(spec: SweepSpec, attempt: Path) -> Proposal | None:
    """The proposal of a run of an earlier release: the searched fields of the attempt's configuration."""
    path = attempt / "trial.yaml"
    if not path.is_file():
        return None
    params = _params(spec, partial(_field, read_yaml(path)), path)
    return Proposal(params=params, user_attrs={"proposed_by": "unknown"}, system_attrs={})


def _field(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted field; ``None`` if it is not there."""
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _params(spec: SweepSpec, value_of: Callable[[str], Any], path: Path) -> dict[str, Choice]:
    """A value for each dimension whose conditions hold.

    Raises:
        FileError: If one is none of its dimension.
    """
    params: dict[str, Choice] = {}
    for name, dimension in ordered_dimensions(spec).items():
        if is_active(dimension, params):
            params[name] = _chosen(dimension, name, value_of(name), path)
    return params


def _chosen(dimension: Dimension, name: str, found: Any, path: Path) -> Choice:
    """A value, as its dimension has it.

    Raises:
        FileError: If it is none.
    """
    if dimension.categorical is not None:
        equal = [choice for choice in dimension.categorical if choice == found]
        if equal:
            return equal[0]
    elif isinstance(found, int | float) and not isinstance(found, bool):
        return int(found) if dimension.int_range is not None else float(found)
    raise FileError(str(path), f"{name}: a value of the sweep's range is expected, got {found!r}")


def _mended(spec: SweepSpec, ledger: Ledger, number: int, files: _Committed) -> Iterator[Step]:
    """Bring one trial of the ledger to what its files say."""
    state = ledger.states().get(number)
    if state in ENDED:
        if files.result is not None and files.result[1].outcome.state != state:
            said = f"left as it is, {state}; its result.json says {files.result[1].outcome.state}"
            yield Step(trial=number, did=said, is_lost=True)
        return
    for problem in files.problems:
        yield Step(trial=number, did=problem, is_lost=True)
    told, proposal = files.result, files.proposal
    if state is None:
        if proposal is None:
            if files.attempts:
                said = (
                    "no file says what was tried: it is asked for anew, under its number and seed"
                )
                yield Step(trial=number, did=said, is_lost=True)
            return
        ledger.restore(number, proposal, {} if told is None else told[1].decisions)
    up_to = told[0] if told is not None else max(files.attempts, default=0)
    n_probes = _replayed(ledger, number, files, up_to)
    given_up = files.given_up(spec.budget.max_attempts)
    if told is not None:
        result = told[1]
        ledger.finish(number, result.outcome, adapter=result.adapter, duration_s=result.duration_s)
        ended = f"{result.outcome.state}, as its committed result says"
    elif given_up is not None:
        ledger.fail(number, given_up)
        ended = f"FAIL, as its attempts say: {given_up}"
    elif state is None:
        ended = f"interrupted, with {n_probes} committed probes: `resume` goes on with it"
    else:
        return  # it was RUNNING and is
    yield Step(trial=number, did=("restored, " if state is None else "") + ended)


def _replayed(ledger: Ledger, number: int, files: _Committed, up_to: int) -> int:
    """Report the probes that attempts committed, in order; how many the last one has."""
    attempt = {n: k for n, _, k in ledger.running()}[number]
    n_probes = 0
    for known, probes in files.probes.items():
        if known > up_to or known < attempt:
            continue
        while attempt < known:
            attempt = ledger.begin_attempt(number)
        n_probes = len(probes)
        for n in range(1, n_probes + 1):
            ledger.report(number, attempt, probes[:n])
    return n_probes
