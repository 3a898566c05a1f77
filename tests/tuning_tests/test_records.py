"""A run folder is read by SQL alone: while it is written, after a crash, from a copy, without frameworks."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
import yaml
from half_written import leave_half_written

from core.errors import ConfigError, UserError
from core.store.durable import finite
from tuning.ledger import Ledger
from tuning.records import (
    LEDGER_FILE,
    LOCK_FILE,
    SPEC_FILE,
    Ending,
    Note,
    is_driven,
    journal_of,
    put_ledger,
)
from tuning.run import Run, load_run


def study_of(run: Run) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{run.path / LEDGER_FILE}")


def open_ledger(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path / LEDGER_FILE, isolation_level=None)


# What is read


def test_records_say_what_the_ledger_was_told(sample_run: Run) -> None:
    trials = study_of(sample_run).trials
    assert [t.number for t in sample_run.trials] == [t.number for t in trials]
    for record, trial in zip(sample_run.trials, trials, strict=True):
        told = trial.user_attrs
        state = trial.state.name
        assert record.state == ("INTERRUPTED" if state == "RUNNING" else state)  # nobody drives it
        assert dict(record.params) == trial.params
        for name in ("attempt", "proposed_by", "stopped_by", "reason", "adapter", "duration_s"):
            assert getattr(record, name) == told.get(name), name
        for name in ("value", "step", "steps"):
            assert getattr(record, name) == told.get(name), name
        assert finite(record.metrics) == told.get("metrics", {})
        assert dict(record.violations) == told.get("violations", {})
        if trial.state.name == "COMPLETE":
            assert record.value == trial.value
            assert dict(record.violations) == pytest.approx(trial.constraints)


def test_notes_are_what_the_driver_recorded(sample_run: Run) -> None:
    told = study_of(sample_run).user_attrs
    assert vars(sample_run.driver) == {name: told.get(name) for name in get_args(Note)}
    beside = yaml.safe_load((sample_run.path / SPEC_FILE).read_text(encoding="utf-8"))
    del beside["sweep"]
    plain = {
        "rows": {},
        "data_counts": {},
        "file": "",
        "scale": "",
        "warnings": [],
        "evaluation": {},
        "ledger": {},
    }
    assert beside and vars(sample_run.facts) == plain | beside
    assert (sample_run.target, sample_run.name, sample_run.state) == (10, "sample", "done")


def test_report_metrics_belong_to_their_trial(sample_run: Run) -> None:
    measured = [t.number for t in sample_run.trials if t.report_metrics is not None]
    assert measured == [0, 3, 7]


def test_nan_comes_back_as_nan(sample_run: Run) -> None:
    diverged = sample_run.trials[4]
    assert diverged.stopped_by == "non_finite"
    assert math.isnan(diverged.metrics["retain_drop"])
    assert diverged.metrics["general_drop"] == math.inf
    assert diverged.value is not None and math.isfinite(diverged.value)


def test_history_is_that_of_the_latest_attempt(sample_run: Run) -> None:
    lines = sample_run.history(0)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    assert lines[5]["metrics"]["forget_nll"] == 2.8


def test_a_starting_point_that_waits_is_a_trial_without_anything(sample_run: Run) -> None:
    study_of(sample_run).enqueue_trial({"adapter.rank": 4})
    waiting = load_run(sample_run.path).trials[-1]
    assert (waiting.state, waiting.attempt, waiting.value) == ("WAITING", 0, None)
    assert waiting.feasible is False and dict(waiting.params) == {}


def test_a_copied_run_reads_the_same(sample_run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "other-name"
    shutil.copytree(sample_run.path, copy)
    found = load_run(copy)
    assert repr(found.trials) == repr(sample_run.trials)  # repr, since NaN differs from itself
    assert found.spec == sample_run.spec
    assert found.name == "other-name"


def test_reading_needs_no_framework(sample_run: Run) -> None:
    script = (
        "import sys; from pathlib import Path; from tuning.run import load_run;"
        "run = load_run(Path(sys.argv[1])); print(len(run.trials));"
        "heavy = {'optuna', 'sqlalchemy', 'torch', 'ray', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(sample_run.path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "9\n"), done.stderr


def test_reading_changes_nothing(sample_run: Run) -> None:
    def content() -> dict[str, bytes]:
        files = (p for p in sorted(sample_run.path.rglob("*")) if p.is_file())
        return {str(p): p.read_bytes() for p in files}

    before = content()
    load_run(sample_run.path)
    assert content() == before


def test_a_run_on_a_read_only_folder_is_read(sample_run: Run) -> None:
    (sample_run.path / LEDGER_FILE).chmod(0o400)
    sample_run.path.chmod(0o500)
    try:
        assert len(load_run(sample_run.path).trials) == 9
    finally:
        sample_run.path.chmod(0o700)


# Beside a writer, and after one died


def test_a_run_is_read_while_a_driver_has_it_open(sample_run: Run) -> None:
    ledger = Ledger(sample_run.path, sample_run.spec, create=False)
    ledger.ask()
    with closing(open_ledger(sample_run.path)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM trial_user_attributes")
        found = load_run(sample_run.path)
        writer.execute("ROLLBACK")
    assert len(found.trials) == 10
    assert found.trials[0].value == sample_run.trials[0].value


def test_half_a_write_of_a_killed_driver_is_taken_back(sample_run: Run, tmp_path: Path) -> None:
    """The journal of an unfinished transaction lies beside a database that holds half of it."""
    killed = tmp_path / "killed"
    with closing(open_ledger(sample_run.path)) as writer:
        writer.execute("PRAGMA cache_size = 2")  # spill to the file at once
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE trial_user_attributes SET value_json = '\"half\"'")
        writer.execute("CREATE TABLE filler (text)")
        writer.executemany("INSERT INTO filler VALUES (?)", [("x" * 2000,)] * 200)
        shutil.copytree(sample_run.path, killed)
        writer.execute("ROLLBACK")
    assert (killed / f"{LEDGER_FILE}-journal").stat().st_size > 0
    assert repr(load_run(killed).trials) == repr(sample_run.trials)


# Refusals


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (SPEC_FILE, r"no run is there \(ledger\.db and spec\.yaml are expected\)"),
        (LEDGER_FILE, "the ledger is missing; rebuild it .* with `unlearn-tune repair "),
    ],
)
def test_a_folder_that_is_no_whole_run_is_refused(sample_run: Run, missing: str, said: str) -> None:
    (sample_run.path / missing).unlink()
    with pytest.raises(UserError, match=said):
        load_run(sample_run.path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no run is there"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"no database " * 100, id="garbage"), pytest.param(b"", id="empty")],
)
def test_a_ledger_that_cannot_be_read_is_refused(sample_run: Run, content: bytes) -> None:
    path = sample_run.path / LEDGER_FILE
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"ledger\.db: the ledger cannot be read: .*nothing was changed"
    ):
        load_run(sample_run.path)
    assert path.read_bytes() == content


def test_a_torn_ledger_is_refused(sample_run: Run) -> None:
    path = sample_run.path / LEDGER_FILE
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="the ledger cannot be read: .*malformed"):
        load_run(sample_run.path)


def test_a_specification_without_a_sweep_is_refused(sample_run: Run) -> None:
    (sample_run.path / SPEC_FILE).write_text("other: 1\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"spec\.yaml: 1 problem\n  - sweep: required, but absent"
    ):
        load_run(sample_run.path)


def test_a_specification_that_was_edited_into_nonsense_is_refused(sample_run: Run) -> None:
    path = sample_run.path / SPEC_FILE
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["sweep"]["budget"]["max_steps"] = 0
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"spec\.yaml: 1 problem\n  - budget\.max_steps: .*got 0"):
        load_run(sample_run.path)


# Who drives it


@contextmanager
def another_driver(run_dir: Path) -> Iterator[None]:
    """A process that holds the run's lock."""
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(run_dir / LOCK_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
        process.communicate()


def test_a_run_is_driven_while_another_process_holds_its_lock(sample_run: Run) -> None:
    assert not is_driven(sample_run.path)
    with another_driver(sample_run.path):
        assert is_driven(sample_run.path)
        assert load_run(sample_run.path).state == "running"
    assert not is_driven(sample_run.path)  # the lock ends with its holder; the file stays
    assert (sample_run.path / LOCK_FILE).exists()
    assert load_run(sample_run.path).state == "done"


@pytest.mark.parametrize(
    ("ended", "state"),
    [("done", "done"), ("no_feasible", "no_feasible"), ("failed", "failed"), (None, "interrupted")],
)
def test_a_run_that_nobody_drives_is_as_it_ended(
    sample_run: Run, ended: Ending | None, state: str
) -> None:
    Ledger(sample_run.path, sample_run.spec, create=False).set_note("ended", ended)
    assert load_run(sample_run.path).state == state


def test_records_can_be_written_as_json(sample_run: Run) -> None:
    for trial in sample_run.trials:
        json.dumps(finite(vars(trial)), allow_nan=False)


def test_a_ledger_in_the_place_of_another_has_nothing_of_it(
    sample_run: Run, tmp_path: Path, build_run: Callable[..., Run]
) -> None:
    """SQLite would play the old one's journal back into the new file, and call it whole."""
    other = build_run("other")
    ledger = sample_run.path / LEDGER_FILE
    leave_half_written(ledger)
    put_ledger(ledger, partial(shutil.copyfile, other.path / LEDGER_FILE))
    assert not journal_of(ledger).exists()
    with closing(open_ledger(sample_run.path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert ledger.read_bytes() == (other.path / LEDGER_FILE).read_bytes()
