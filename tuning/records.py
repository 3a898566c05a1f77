"""Read a run folder: plain records of trials, without Optuna, Ray or torch.

Works on a copied folder, and while the sweep runs. The only SQL of the project is here.
"""

import fcntl
import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigError, UserError
from core.store.durable import read_lines
from tuning.config import SweepSpec, parse_sweep, read_yaml

if TYPE_CHECKING:
    import pandas

LEDGER_FILE = "ledger.db"
SPEC_FILE = "spec.yaml"
LOCK_FILE = "driver.lock"

TrialState = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
RunState = Literal["running", "interrupted", "done", "no_feasible", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the ledger has it.

    Attributes:
        number: Its number in the sweep.
        state: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        params: Searched fields and their values.
        proposed_by: ``start_from``, ``startup`` or ``sampler``.
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
        duration_s: Seconds of the last attempt.
        adapter: Folder of its adapter, relative to the run folder.
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read.

    Attributes:
        path: The folder.
        spec: Its sweep.
        trials: All trials, by number.
        notes: What the driver recorded of the sweep as a whole: ``baseline``, ``report_baseline``,
            ``identity``, ``rows``, ``versions``, ``created`` beside the sweep; ``target``,
            ``concurrent``, ``session_began``, ``ended``, ``elapsed_s`` in the ledger.
        is_driven: Whether a driver holds the run at this moment.
    """

    path: Path
    spec: SweepSpec
    trials: tuple[TrialRecord, ...]
    notes: Mapping[str, Any]
    is_driven: bool

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.path.name

    @property
    def target(self) -> int:
        """Trials that the sweep is to reach."""
        return int(self.notes.get("target", self.spec.budget.trials))

    @property
    def state(self) -> RunState:
        """What the sweep is doing, or how it ended."""
        if self.is_driven:
            return "running"
        ended = self.notes.get("ended")
        if ended in ("done", "no_feasible", "failed"):
            return ended  # type: ignore[no-any-return]  # one of the literals
        return "interrupted"

    @property
    def elapsed_s(self) -> float | None:
        """Seconds that drivers have worked on the run, also while one does; ``None`` before the first."""
        before = self.notes.get("elapsed_s")
        if not self.is_driven or "session_began" not in self.notes:
            return before
        return round(float(before or 0.0) + time.time() - float(self.notes["session_began"]), 1)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each trial; parameters and metrics as columns ``params.*``, ``metrics.*``."""
        from tuning.results import to_dataframe

        return to_dataframe(self)

    def history(self, number: int) -> list[dict[str, Any]]:
        """History lines of a trial's latest attempt, the untouched model's first."""
        record = self.trials[number]
        path = self.path / attempt_folder(number, record.attempt) / "history.jsonl"
        return [_value(line) for line in read_lines(path)]


def attempt_folder(number: int, attempt: int) -> str:
    """Folder of an attempt, relative to the run folder."""
    return f"trials/{number:04d}/attempt-{attempt}"


def load_run(run_dir: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: If there is no run, or its ledger cannot be read.
    """
    ledger = run_dir / LEDGER_FILE
    if not ledger.is_file() or not (run_dir / SPEC_FILE).is_file():
        raise UserError(
            f"{run_dir}: no run is there ({LEDGER_FILE} and {SPEC_FILE} are expected); "
            "give the folder of a sweep, such as runs/demo"
        )
    try:
        trials, notes = _read(ledger)
    except sqlite3.DatabaseError as err:
        if _code(err) == sqlite3.SQLITE_BUSY:
            raise UserError(
                f"{ledger}: the ledger is being written; try again in a moment"
            ) from err
        raise UserError(
            f"{ledger}: the ledger cannot be read: {err}; nothing was changed, restore it from a copy"
        ) from err
    spec, facts = _read_spec(run_dir / SPEC_FILE)
    return Run(
        path=run_dir,
        spec=spec,
        trials=trials,
        notes={**facts, **notes},
        is_driven=is_driven(run_dir),
    )


def _read_spec(path: Path) -> tuple[SweepSpec, dict[str, Any]]:
    """The sweep, and the facts that were recorded beside it when the run began."""
    values = read_yaml(path)
    if not isinstance(values.get("sweep"), dict):
        raise ConfigError(str(path), ["sweep: required, but absent; restore the file from a copy"])
    spec = parse_sweep(values.pop("sweep"), where=str(path))
    return spec, values


def is_driven(run_dir: Path) -> bool:
    """Whether a live process holds the run's lock."""
    lock = run_dir / LOCK_FILE
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def now() -> str:
    """UTC time for display; never used for order."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(ledger: Path) -> tuple[tuple[TrialRecord, ...], dict[str, Any]]:
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


def _read_opened(ledger: Path, *, mode: str) -> tuple[tuple[TrialRecord, ...], dict[str, Any]]:
    with closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode={mode}", uri=True)) as database:
        database.execute("PRAGMA busy_timeout = 5000")
        return _records(database)


def _records(database: sqlite3.Connection) -> tuple[tuple[TrialRecord, ...], dict[str, Any]]:
    notes = {
        key: _value(json.loads(text))
        for key, text in database.execute("SELECT key, value_json FROM study_user_attributes")
    }
    attributes: dict[int, dict[str, Any]] = {}
    query = (
        "SELECT trial_id, key, value_json FROM trial_user_attributes WHERE key NOT LIKE 'guard:%'"
    )
    for trial_id, key, text in database.execute(query):
        attributes.setdefault(trial_id, {})[key] = _value(json.loads(text))
    rows = database.execute("SELECT trial_id, number, state FROM trials ORDER BY number").fetchall()
    records = (
        _record(number, state, attributes.get(trial_id, {}), notes.get(f"report:{number}"))
        for trial_id, number, state in rows
    )
    return tuple(records), notes


def _record(
    number: int, state: TrialState, found: Mapping[str, Any], report: Mapping[str, float] | None
) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=state,
        params=found.get("params", {}),
        proposed_by=found.get("proposed_by"),
        attempt=int(found.get("attempt", 0)),
        stopped_by=found.get("stopped_by"),
        reason=found.get("reason"),
        value=found.get("value"),
        feasible=bool(found.get("feasible", False)),
        step=found.get("step"),
        steps=found.get("steps"),
        metrics=found.get("metrics", {}),
        violations=found.get("violations", {}),
        report_metrics=report,
        duration_s=found.get("duration_s"),
        adapter=found.get("adapter"),
    )


def _value(value: Any) -> Any:
    """Undo :func:`core.store.durable.finite`: the strings nan, inf and -inf are numbers again."""
    if isinstance(value, dict):
        return {k: _value(v) for k, v in value.items()}
    if value in ("nan", "inf", "-inf"):
        return float(value)
    return value
