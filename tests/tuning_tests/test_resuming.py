"""What a driver does about checkpoints: it names the attempts before, and removes what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analytic_study import probe, spec_of
from driven_sweep import drive

from core.store.checkpoints import folder_of
from core.store.durable import read_lines
from tuning.concluding import reconcile
from tuning.dispatcher import Dispatcher
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.records import LEDGER_FILE, attempt_folder

SPEC = spec_of(budget={"trials": 2, "max_steps": 3})


def began(run_dir: Path) -> Dispatcher:
    """A driver of the run."""
    ledger = Ledger(run_dir, SPEC, create=not (run_dir / LEDGER_FILE).exists())
    log = EventLog(run_dir / "events.jsonl", Silent())
    reconcile(SPEC, run_dir, ledger, log)
    return Dispatcher(SPEC, run_dir, ledger, log, target=SPEC.budget.trials)


def checkpoint(run_dir: Path, number: int, attempt: int) -> Path:
    """Something in the place of a checkpoint."""
    path = folder_of(run_dir / attempt_folder(number, attempt), 2)
    path.mkdir(parents=True)
    return path


def test_an_attempt_is_told_where_those_before_it_are(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        assignment = began(tmp_path).next()
        assert assignment is not None
        assert (assignment.number, assignment.attempt) == (0, attempt)
        before = [tmp_path / attempt_folder(0, earlier) for earlier in range(1, attempt)]
        assert list(assignment.home.enter().earlier) == [path.resolve() for path in before]


def test_checkpoints_go_when_their_trial_is_told_and_stay_while_it_runs(tmp_path: Path) -> None:
    dispatcher = began(tmp_path)
    first, second = dispatcher.next(), dispatcher.next()
    assert first is not None and second is None  # one at a time
    told, left = checkpoint(tmp_path, 0, 1), checkpoint(tmp_path, 7, 1)
    dispatcher = began(tmp_path)
    assert told.exists(), "an interrupted trial goes on from it"
    assert not left.exists(), "what a driver that died left of another"
    drive(SPEC, tmp_path)
    assert not told.parent.exists()


def test_checkpoints_of_a_trial_that_is_given_up_go(tmp_path: Path) -> None:
    dispatcher = began(tmp_path)
    for attempt in range(1, SPEC.budget.max_attempts + 1):
        assignment = dispatcher.next()
        assert assignment is not None
        assert (assignment.number, assignment.attempt) == (0, attempt)
        made = checkpoint(tmp_path, 0, attempt)
        dispatcher.broke(0)
        assert made.exists() == (attempt < SPEC.budget.max_attempts)
    assert list(tmp_path.glob("trials/*/attempt-*/checkpoints")) == []


def test_going_on_is_logged_once_and_a_probe_that_was_told_before_is_not(tmp_path: Path) -> None:
    dispatcher = began(tmp_path)
    assert dispatcher.next() is not None
    dispatcher.take(0, probe(1, 0.3))
    dispatcher = began(tmp_path)
    assert dispatcher.next() is not None
    for step in (1, 2):
        assert not dispatcher.take(0, replace(probe(step, 0.3), resumed_at=1))
    told = [
        (line["event"], line.get("step", line.get("probe", {}).get("step")))
        for line in read_lines(tmp_path / "events.jsonl")
        if line["event"] != "TrialBegan"
    ]
    assert told == [("TrialProbed", 1), ("TrialResumed", 1), ("TrialProbed", 2)]
