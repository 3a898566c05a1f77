"""What a run folder holds, as plain records, and how the ledger is read: without Optuna, Ray or torch.

Works on a copied folder, and while the sweep runs. The only SQL of the project is here. What the whole folder
says is :class:`tuning.run.Run`.
"""

import json
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from core.data.counts import Counts
from core.errors import FileError, UserError, in_a_line
from core.measuring.selection import StoppedBy
from core.store.confinement import inside
from core.store.durable import checksum, commit, read_lines, sync
from core.store.locks import try_lock
from core.training.lora_format import WEIGHTS_FILE
from tuning.attributes import (
    are_intervals,
    are_numbers,
    is_count,
    is_number,
    refuse_damaged,
)
from tuning.data_words import read_counts

LEDGER_FILE = "ledger.db"
SPEC_FILE = "spec.yaml"
LOCK_FILE = "driver.lock"
EVENTS_FILE = "events.jsonl"
LEASES_TABLE = "unlearn_tune_drivers"
"""Table of a ledger that says who drives its run."""
STORAGE_FILE = "storage.json"
"""Where the run's copy is, and the claim on it of the driver that worked in the folder last."""
OWN_FILES = (
    *(LEDGER_FILE, SPEC_FILE, LOCK_FILE, EVENTS_FILE),
    *(STORAGE_FILE, "driver.log", "report", "samples.json", "trials"),
)
"""Names in a run folder that are read or written there, whoever made it."""

TrialState = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING", "INTERRUPTED"]
"""Optuna's, and INTERRUPTED: begun, not ended, and nobody drives the run."""
ENDED: Sequence[TrialState] = ("COMPLETE", "PRUNED", "FAIL")
"""States of a trial that was told how it ended."""
Ending = Literal["done", "no_feasible", "failed"]
"""How a sweep that reached its end ended."""
RunState = Literal["running", "interrupted", Ending]
Note = Literal["target", "concurrent", "session_began", "ended", "elapsed_s"]
"""Name in the ledger of each of the :class:`DriverFacts`."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the ledger has it.

    Attributes:
        number: Its number in the sweep.
        state: Of :data:`TrialState`; INTERRUPTED only in a :class:`tuning.run.Run`.
        params: Searched fields and their values.
        proposed_by: ``start_from``, ``startup``, ``sampler``, ``prior`` or ``retry``.
        attempt: Attempts so far.
        stopped_by: What ended it; ``None`` while it runs.
        reason: The same in words.
        value: Objective of the probe that counts; ``None`` while it runs or if it failed.
        feasible: Whether that probe keeps every constraint.
        step: Its step; the latest step of a running trial.
        steps: Optimiser steps made; ``None`` while it runs.
        metrics: Metrics of that probe.
        violations: ``metric - at_most`` of each constraint.
        report_metrics: Metrics on the reporting split, of finalists.
        intervals: 95 % interval, lower and upper end, of each closure and drop of that probe; empty in runs
            that did not measure any.
        value_interval: That of ``value``; ``None`` where there is none.
        is_minimized: Whether less of ``value`` is better.
        report_intervals: That of each closure and drop on the reporting split.
        retry_of: Number of the failed trial that it repeats.
        duration_s: Seconds of the last attempt.
        adapter: Folder of its adapter, relative to the run folder.
        evaluation: What suites measure, of finalists: ``SUITE.METRIC`` to number.
        evaluation_violations: How far it lies beyond each limit on these.
    """

    number: int
    state: TrialState
    params: Mapping[str, Any]
    proposed_by: str | None
    attempt: int
    stopped_by: str | None
    reason: str | None
    value: float | None
    feasible: bool
    step: int | None
    steps: int | None
    metrics: Mapping[str, float]
    violations: Mapping[str, float]
    report_metrics: Mapping[str, float] | None
    duration_s: float | None
    adapter: str | None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    value_interval: tuple[float, float] | None = None
    report_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    is_minimized: bool = False
    evaluation: Mapping[str, float] = field(default_factory=dict)
    evaluation_violations: Mapping[str, float] = field(default_factory=dict)
    retry_of: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it was told how it ended."""
        return self.state in ENDED

    @property
    def merit(self) -> float:
        """The value with the sign by which more is better; 0 where there is none."""
        value = self.value or 0.0
        return -value if self.is_minimized else value

    @property
    def report_violations(self) -> dict[str, float]:
        """``metric - at_most`` of each constraint on the reporting split; empty if it was not measured there."""
        report = self.report_metrics or {}
        at_most = {m: self.metrics[m] - excess for m, excess in self.violations.items()}
        return {m: report[m] - limit for m, limit in at_most.items() if m in report}

    @property
    def reported_feasible(self) -> bool | None:
        """Whether every constraint holds on the reporting split and in the evaluation; ``None`` if not measured."""
        if self.report_metrics is None:
            return None
        found = (*self.report_violations.values(), *self.evaluation_violations.values())
        return all(excess <= 1e-9 for excess in found)  # not NaN


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is recorded beside the sweep when a run begins, and never changes. Names are those in ``spec.yaml``.

    Attributes:
        identity: What names the model's weights and each part of the data; hashes, or commits of a hub.
        rows: Rows of each part of the data.
        data_counts: What was read for each part and what of it is left out; empty if it was not recorded.
        baseline: Level of each set before unlearning, on the probe split; empty if it was not recorded.
        report_baseline: The same on the reporting split.
        versions: Of our packages and Python.
        created: UTC time; ``None`` if it was not recorded.
        file: The sweep file that it began with; empty if it was not recorded.
        scale: On which scale damage to retained text is counted, and why; empty if the file names it.
        warnings: What a person should know of the limits.
        evaluation: What suites measure of the untouched model; empty if the sweep asks for none.
        ledger: URL of the database that holds the ledger, without a password, and name of the study; empty if the
            ledger is a file of the run folder.
    """

    identity: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    data_counts: Mapping[str, Counts] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    report_baseline: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str | None = None
    file: str = ""
    scale: str = ""
    warnings: Sequence[str] = field(default_factory=list)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    ledger: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "RunFacts":
        """From plain values; what an older or a damaged run does not have is empty."""
        groups: Mapping[str, Callable[[Any], bool]] = {
            "identity": lambda v: isinstance(v, str | Mapping),
            "rows": is_count,
            "baseline": is_number,
            "report_baseline": is_number,
            "versions": lambda v: isinstance(v, str),
            "evaluation": is_number,
            "ledger": lambda v: isinstance(v, str),
        }
        found = {name: values.get(name) for name in groups}
        created, warnings = values.get("created"), values.get("warnings")
        return cls(
            **{
                name: {k: v for k, v in group.items() if groups[name](v)}
                for name, group in found.items()
                if isinstance(group, Mapping)
            },
            data_counts=read_counts(values.get("data_counts")),
            created=None if created is None else str(created),
            file=str(values.get("file") or ""),
            scale=str(values.get("scale") or ""),
            warnings=[str(w) for w in warnings] if isinstance(warnings, list) else [],
        )


@dataclass(frozen=True, kw_only=True)
class DriverFacts:
    """What the driver keeps in the ledger of the sweep as a whole; ``None`` before it is known.

    Attributes:
        target: Trials that the sweep is to reach.
        concurrent: Trials at the same time.
        session_began: When the last driver began, in seconds since the epoch.
        ended: How the sweep ended; ``None`` also while it goes on and after an interruption.
        elapsed_s: Seconds that finished drivers have worked on the run.
    """

    target: int | None = None
    concurrent: int | None = None
    session_began: float | None = None
    ended: Ending | None = None
    elapsed_s: float | None = None

    @classmethod
    def read(cls, notes: Mapping[str, Any]) -> "DriverFacts":
        """From the notes of the ledger; what an older or a damaged run does not have is ``None``."""
        found = {name: notes.get(name) for name in get_args(Note)}
        for name in ("target", "concurrent"):
            found[name] = found[name] if is_count(found[name]) else None
        for name in ("session_began", "elapsed_s"):
            value = found[name]
            found[name] = value if is_number(value) and math.isfinite(float(value)) else None
        if found["ended"] not in get_args(Ending):
            found["ended"] = None
        return cls(**found)


def report_note(number: int) -> str:
    """Name in the ledger of a finalist's metrics on the reporting split."""
    return f"report:{number}"


def report_intervals_note(number: int) -> str:
    """Name in the ledger of the intervals of these metrics."""
    return f"report_intervals:{number}"


def evaluation_note(number: int) -> str:
    """Name in the ledger of what suites measure of a finalist."""
    return f"evaluation:{number}"


def attempt_folder(number: int, attempt: int) -> str:
    """Folder of an attempt, relative to the run folder."""
    return f"trials/{number:04d}/attempt-{attempt}"


def read_history(run_dir: Path, number: int, attempt: int) -> list[dict[str, Any]]:
    """History lines of an attempt, the untouched model's first; none if it has none.

    Raises:
        FileError: If the file cannot be read, or is not what a worker writes.
    """
    history = inside(run_dir, f"{attempt_folder(number, attempt)}/history.jsonl")
    return history_lines(history.parent)


def history_lines(folder: Path) -> list[dict[str, Any]]:
    """History lines of the attempt in a folder, the untouched model's first; none if it has none.

    Raises:
        FileError: If the file cannot be read, or is not what a worker writes.
    """
    path = folder / "history.jsonl"
    found = read_lines(path)
    before = -1
    for number, line in enumerate(found, start=1):
        problem = _line_problem(line, before)
        if problem is not None:
            raise FileError(str(path), f"record {number}: {problem}; restore the file from a copy")
        before = line["step"]
    return [as_numbers(line) for line in found]


def _line_problem(line: Mapping[str, Any], before: int) -> str | None:
    """What is wrong with a history line after one of another step; ``None`` if it is what a worker writes."""
    step, metrics = line.get("step"), line.get("metrics")
    if not is_count(step):
        return f"step: must be a whole number, got {step!r}"
    if step <= before:
        return f"step: must grow from line to line, got {step} after {before}"
    if not are_numbers(metrics):
        return f"metrics: must be numbers by name, got {metrics!r}"
    rules: Mapping[str, Callable[[Any], bool]] = {
        "seconds": is_number,
        "stopped_by": lambda v: v in get_args(StoppedBy),
        "intervals": are_intervals,
        "skipped": lambda v: isinstance(v, list) and all(map(is_count, v)),
        "n_rows": are_numbers,
        "is_overtaken": lambda v: isinstance(v, bool),
        "landed": lambda v: (
            isinstance(v, Mapping)
            and are_numbers(v.get("metrics"))
            and are_intervals(v.get("intervals", {}))
        ),
    }
    wrong = [
        f"{name}: is not what a worker writes, got {line[name]!r}"
        for name, rule in rules.items()
        if line.get(name) is not None and not rule(line[name])
    ]
    return wrong[0] if wrong else None


def is_adapter_damaged(run_dir: Path, number: int, attempt: int) -> bool:
    """Whether an attempt's adapter is another file than the one that its best probe saved.

    Where no checksum was recorded, as in older runs and of whole models, it is taken for sound.
    """
    sums = [line.get("adapter_sha256") for line in read_history(run_dir, number, attempt)]
    saved = next((found for found in reversed(sums) if found is not None), None)
    weights = run_dir / attempt_folder(number, attempt) / "adapter" / WEIGHTS_FILE
    return saved is not None and weights.is_file() and checksum(weights) != saved


def is_driven(run_dir: Path) -> bool:
    """Whether a live process holds the run's lock."""
    lock = run_dir / LOCK_FILE
    if not lock.is_file():  # a pipe in its place would wait for a writer
        return False
    with lock.open("rb") as file:
        try:
            return not try_lock(file, shared=True)
        except OSError:
            return False  # without locks nothing is driven: this is a copy


def now() -> str:
    """UTC time for display; never used for order."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_ledger(ledger: Path) -> tuple[tuple[TrialRecord, ...], DriverFacts]:
    """All trials by number, and what the driver recorded of the sweep.

    Raises:
        UserError: If the ledger cannot be read.
    """
    try:
        return _read(ledger)
    except sqlite3.DatabaseError as err:
        if _code(err) == sqlite3.SQLITE_BUSY:
            raise UserError(
                f"{ledger}: the ledger is being written; try again in a moment"
            ) from err
        raise unread(ledger, err) from err
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as err:  # what a row of it holds
        raise unread(ledger, err) from err


def integrity_problem(ledger: Path) -> str | None:
    """What SQLite finds wrong with a ledger; ``None`` if nothing. A write that was cut off is taken back first."""
    try:
        with closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=rw", uri=True)) as database:
            found = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
    except sqlite3.DatabaseError as err:
        return in_a_line(err)
    return None if found == ["ok"] else "; ".join(found[:3])


def readable_states(ledger: Path) -> dict[int, str]:
    """The state of each trial, by number, as far as a damaged ledger can be read."""
    found: dict[int, str] = {}
    try:
        with closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for number, state in database.execute("SELECT number, state FROM trials"):
                found[int(number)] = str(state)
    except (sqlite3.DatabaseError, ValueError, TypeError):
        pass  # what was read before counts
    return found


def put_ledger(ledger: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file, and commit it as a ledger, also in the place of one that is there.

    A journal that a kill left beside the old one goes with it: SQLite would play it back into the new file, page by
    page, and find nothing wrong. It goes right before the rename, when all that needs room on the disk is done.
    """

    def replace(new: Path) -> None:
        write(new)
        sync(new)
        journal_of(ledger).unlink(missing_ok=True)

    commit(ledger, replace)


def journal_of(ledger: Path) -> Path:
    """SQLite's file beside a ledger, of a write that is going on, or that a kill cut off."""
    return ledger.with_name(f"{ledger.name}-journal")


def copy_ledger(ledger: Path, target: Path) -> None:
    """Copy the ledger as it stands between two writes, also while a driver writes it; over an earlier copy, too.

    Who drives the run is left out: a driver holds the ledger, and no copy of it.

    Args:
        ledger: The ledger.
        target: The copy.

    Raises:
        UserError: If the ledger cannot be read, or the copy not be written.
    """
    try:
        with (
            closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True)) as database,
            closing(sqlite3.connect(target)) as copy,
        ):
            database.execute("PRAGMA busy_timeout = 60000")
            copy.execute("PRAGMA synchronous = OFF")  # it is put elsewhere, and then deleted
            database.backup(copy)
            copy.execute(f"DROP TABLE IF EXISTS {LEASES_TABLE}")
    except sqlite3.Error as err:
        raise UserError(
            f"{ledger}: the ledger cannot be copied: {in_a_line(err)}; see that its disk is healthy and has room"
        ) from err


def unread(ledger: Path, err: Exception) -> UserError:
    """What is said of a ledger that is damaged."""
    return UserError(
        f"{ledger}: the ledger cannot be read: {in_a_line(err)}; nothing was changed; rebuild it from what the trials "
        f"committed with `unlearn-tune repair {ledger.parent}`"
    )


def _read(ledger: Path) -> tuple[tuple[TrialRecord, ...], DriverFacts]:
    try:
        return _read_opened(ledger, mode="ro")
    except sqlite3.OperationalError as err:
        if _code(err) != sqlite3.SQLITE_READONLY:
            raise
    # A driver was killed in the middle of a write; SQLite takes the half of it back when it may write.
    return _read_opened(ledger, mode="rw")


def _code(err: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code; 0 if the error is not SQLite's own."""
    return int(getattr(err, "sqlite_errorcode", 0)) & 0xFF


def _read_opened(ledger: Path, *, mode: str) -> tuple[tuple[TrialRecord, ...], DriverFacts]:
    with closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode={mode}", uri=True)) as database:
        database.execute("PRAGMA busy_timeout = 5000")
        database.execute("PRAGMA trusted_schema = OFF")  # a copied file may have views of its own
        return _records(database)


def _records(database: sqlite3.Connection) -> tuple[tuple[TrialRecord, ...], DriverFacts]:
    notes = {
        key: _read_json(text)
        for key, text in database.execute("SELECT key, value_json FROM study_user_attributes")
    }
    # The driver's own attributes, of which there are several for each probe, have a colon in their names.
    query = (
        "SELECT number, state, (SELECT group_concat(json_quote(key) || ':' || value_json) "
        "FROM trial_user_attributes AS a WHERE a.trial_id = trials.trial_id AND instr(key, ':') = 0) "
        "FROM trials ORDER BY number"
    )
    records = [
        _record(int(number), state, _read_json(f"{{{attributes or ''}}}"), notes)
        for number, state, attributes in database.execute(query)
    ]
    is_cut = (
        "SELECT (SELECT max(trial_id) FROM trial_user_attributes) > "
        "coalesce((SELECT max(trial_id) FROM trials), 0)"
    )
    if database.execute(is_cut).fetchone()[0]:
        raise ValueError(f"trials after the first {len(records)} are missing")
    lacking = next((n for n, record in enumerate(records) if record.number != n), None)
    if lacking is not None:
        raise ValueError(f"trial {lacking} is missing, of {len(records)} that are there")
    return tuple(records), DriverFacts.read(notes)


def _read_json(text: str) -> Any:
    """What :func:`core.store.durable.finite` made JSON of."""
    found = json.loads(text)
    return as_numbers(found) if 'nan"' in text or 'inf"' in text else found


def _record(
    number: int, state: TrialState, found: Mapping[str, Any], notes: Mapping[str, Any]
) -> TrialRecord:
    refuse_damaged(number, state, found)
    ends, report = found.get("value_interval"), notes.get(report_note(number))
    report_ends = notes.get(report_intervals_note(number))
    if report is not None and not are_numbers(report):
        raise ValueError(f"{report_note(number)}: must be numbers by name, got {report!r}")
    if report_ends is not None and not are_intervals(report_ends):
        raise ValueError(
            f"{report_intervals_note(number)}: must be pairs of numbers by name, got {report_ends!r}"
        )
    evaluation: Mapping[str, Any] = notes.get(evaluation_note(number)) or {}
    for name in ("metrics", "violations"):
        if not are_numbers(evaluation.get(name, {})):
            raise ValueError(f"{evaluation_note(number)}: {name}: must be numbers by name")
    return TrialRecord(
        number=number,
        state=state,
        params=found.get("params") or {},
        proposed_by=found.get("proposed_by"),
        attempt=found.get("attempt") or 0,
        stopped_by=found.get("stopped_by"),
        reason=found.get("reason"),
        value=found.get("value"),
        feasible=bool(found.get("feasible", False)),
        step=found.get("step"),
        steps=found.get("steps"),
        metrics=found.get("metrics") or {},
        violations=found.get("violations") or {},
        report_metrics=report,
        duration_s=found.get("duration_s"),
        adapter=found.get("adapter"),
        intervals=_pairs(found.get("intervals")),
        value_interval=None if ends is None else (ends[0], ends[1]),
        report_intervals=_pairs(report_ends),
        is_minimized=bool(found.get("is_minimized", False)),
        evaluation=evaluation.get("metrics", {}),
        evaluation_violations=evaluation.get("violations", {}),
        retry_of=found.get("retry_of"),
    )


def _pairs(found: Mapping[str, Any] | None) -> dict[str, tuple[float, float]]:
    return {name: (low, high) for name, (low, high) in (found or {}).items()}


def as_numbers(value: Any) -> Any:
    """Undo :func:`core.store.durable.finite`: the strings nan, inf and -inf are numbers again."""
    if isinstance(value, dict):
        return {k: as_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_numbers(v) for v in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
