"""A study that a server lost, or has from an older backup, is mended from the run folder, which lost nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import optuna
import pytest
from analytic_study import spec_of
from command_line import Command
from driven_sweep import conclusions, drive
from postgres import PASSWORD, Postgres
from served_study import Opened, begun, on_server

from core.errors import UserError
from tuning.config import SweepSpec
from tuning.database import Place, has_study, open_file, open_server, released
from tuning.ledger import copied
from tuning.records import LEDGER_FILE
from tuning.repair import repair


def sweep() -> SweepSpec:
    return spec_of(
        sampler={"name": "tpe", "seed": 4, "n_startup_trials": 2},
        budget={"trials": 4, "max_steps": 3},
    )


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder does not say it."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def run_dir(tmp_path: Path, place: Place, opened: Opened) -> Path:
    """A sweep that ended."""
    run_dir = begun(tmp_path / "x", sweep(), place)
    drive(sweep(), run_dir, ledger=opened(run_dir, sweep()))
    return run_dir


def lose(place: Place) -> None:
    with released(open_server(place)) as storage:
        optuna.delete_study(study_name=place.study, storage=storage)


def longer() -> SweepSpec:
    return spec_of(
        sampler={"name": "tpe", "seed": 4, "n_startup_trials": 2},
        budget={"trials": 6, "max_steps": 3},
    )


def goes_on(run_dir: Path, opened: Opened, control: Path) -> None:
    """What follows is what would have followed."""
    drive(longer(), run_dir, ledger=opened(run_dir, longer()))
    drive(longer(), control)
    assert conclusions(run_dir) == conclusions(control)


def test_a_whole_study_is_left_as_it_is(run_dir: Path, place: Place) -> None:
    before, copy = on_server(place), (run_dir / LEDGER_FILE).read_bytes()
    made = repair(run_dir)
    assert made.ledger == "whole" and not made.is_needed and made.copied_to is None
    assert on_server(place) == before
    assert (run_dir / LEDGER_FILE).read_bytes() == copy


def test_a_study_that_is_gone_is_made_again_from_its_copy(
    tmp_path: Path, run_dir: Path, place: Place, opened: Opened
) -> None:
    before = on_server(place)
    lose(place)
    dry = repair(run_dir, is_dry=True)
    assert dry.ledger == "missing" and dry.is_needed and not has_study(place)
    made = repair(run_dir)
    assert "made again from" in made.notes[0] and made.steps == []
    assert on_server(place) == before
    goes_on(run_dir, opened, tmp_path / "control")


def test_without_a_copy_it_is_made_again_from_what_the_trials_committed(
    tmp_path: Path, run_dir: Path, place: Place, opened: Opened
) -> None:
    lose(place)
    (run_dir / LEDGER_FILE).write_bytes(b"no database")
    made = repair(run_dir)
    assert [step.trial for step in made.steps] == [0, 1, 2, 3]
    assert made.copied_to is not None and made.copied_to.read_bytes() == b"no database"
    goes_on(run_dir, opened, tmp_path / "control")


@pytest.fixture
def outdated(tmp_path: Path, place: Place, opened: Opened) -> Path:
    """A sweep that ended, whose database came back from a backup that was made after two trials."""
    run_dir, backup = begun(tmp_path / "x", sweep(), place), tmp_path / "backup.db"
    ledger = opened(run_dir, sweep())
    drive(sweep(), run_dir, ledger=ledger, up_to=2)
    backup.write_bytes((run_dir / LEDGER_FILE).read_bytes())
    drive(sweep(), run_dir, ledger=ledger)
    lose(place)
    source, target = partial(open_file, backup), partial(open_server, place)
    assert copied(source, target, sweep(), name=place.study)
    return run_dir


def test_a_study_from_an_older_backup_gets_what_it_does_not_know(
    tmp_path: Path, outdated: Path, opened: Opened
) -> None:
    made = repair(outdated)
    assert made.ledger == "whole" and {step.trial for step in made.steps} == {2, 3}
    goes_on(outdated, opened, tmp_path / "control")


def test_a_run_that_another_driver_holds_is_left_alone(
    outdated: Path, place: Place, opened: Opened
) -> None:
    opened(outdated, sweep())
    before = on_server(place)
    with pytest.raises(UserError, match="another driver holds this run"):
        repair(outdated)
    assert on_server(place) == before


def test_the_command_takes_a_database_that_moved(
    run_dir: Path, place: Place, postgres: Postgres, tune: Command
) -> None:
    database = postgres.database()
    url = postgres.url(database)
    moved = Place(url=place.url.set(database=database), study=place.study)
    assert not has_study(moved)
    done = tune("repair", str(run_dir), "--ledger", url)
    assert done.status == 0 and "give `resume` its database, too: --ledger" in done.out, done
    assert has_study(moved) and on_server(moved) == on_server(place)
