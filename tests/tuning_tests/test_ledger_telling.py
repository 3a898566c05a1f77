"""The study in SQLite is told once how a trial ended, and can be reopened anywhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from analytic_study import GRID, SPACE, outcome_of, probe, run_trial, spec_of, study_in

from core.errors import UserError
from tuning.ledger import Ledger
from tuning.records import DriverFacts
from tuning.samplers import make_sampler


def test_a_complete_trial_holds_value_constraints_and_reason(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, params = ledger.ask()
    probes = [probe(1, 0.4, 0.04), probe(2, 0.3, stopped_by="budget")]
    attempt = ledger.begin_attempt(number)
    for n in (1, 2):
        ledger.report(number, attempt, probes[:n])
    outcome = outcome_of(spec, probes)
    for _ in range(2):  # a crash may repeat it
        ledger.finish(number, outcome, adapter="trials/0000/attempt-1/adapter", duration_s=3.5)
    assert ledger.running() == []
    trial = study_in(tmp_path).trials[number]
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.4)
    assert trial.constraints == pytest.approx({"retain_drop": -0.06, "general_drop": -0.1})
    found = trial.user_attrs
    assert (found["stopped_by"], found["feasible"], found["step"], found["steps"]) == (
        "budget",
        True,
        1,
        2,
    )
    assert (found["adapter"], found["duration_s"]) == ("trials/0000/attempt-1/adapter", 3.5)
    assert found["params"] == dict(params) == trial.params


def test_a_pruned_trial_holds_the_constraints_it_broke(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    probes = [probe(1, 0.4, 0.9)]
    verdict = ledger.report(number, ledger.begin_attempt(number), probes)
    ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
    trial = study_in(tmp_path).trials[number]
    assert trial.state.name == "PRUNED"
    assert trial.constraints == pytest.approx({"retain_drop": 0.8, "general_drop": -0.1})


def test_a_finished_trial_keeps_its_state(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    done = [probe(1, 0.4, stopped_by="budget")]
    ledger.report(number, ledger.begin_attempt(number), done)
    ledger.finish(number, outcome_of(spec, done), adapter=None, duration_s=1.0)
    broken = [probe(1, 0.4, math.nan, stopped_by="non_finite")]
    with pytest.raises(ValueError, match="trial 0 is COMPLETE already, cannot become PRUNED"):
        ledger.finish(number, outcome_of(spec, broken), adapter=None, duration_s=1.0)
    ledger.fail(number, "too late")
    trial = study_in(tmp_path).trials[number]
    assert trial.state.name == "COMPLETE" and "too late" not in str(trial.user_attrs)


def test_a_failed_trial_holds_its_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    number, _ = ledger.ask()
    ledger.begin_attempt(number)
    ledger.fail(number, "out of memory")
    trial = study_in(tmp_path).trials[number]
    assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", "out of memory")
    assert ledger.running() == []


def test_running_trials_are_what_a_resume_runs_again(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    run_trial(ledger, spec)
    begun = [ledger.ask() for _ in range(2)]
    ledger.begin_attempt(begun[1][0])
    found = Ledger(tmp_path, spec, create=False).running()
    assert found == [(*begun[0], 0), (*begun[1], 1)]
    assert ledger.n_begun() == 3


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random", "grid", "qmc"])
def test_a_trial_whose_driver_died_while_asking_is_completed_under_its_number(
    folders: tuple[Path, Path], sampler: str
) -> None:
    space = GRID if sampler == "grid" else SPACE
    spec = spec_of(sampler={"name": sampler, "seed": 5, "n_startup_trials": 2}, space=space)
    whole, broken = (Ledger(folder, spec, create=True) for folder in folders)
    expected = [whole.ask() for _ in range(3)]
    assert broken.ask() == expected[0]
    study = study_in(folders[1])
    study.sampler = make_sampler(spec, number=1)
    study.ask()  # the driver dies here, before it names the parameters
    broken = Ledger(folders[1], spec, create=False)
    assert broken.n_begun() == 1
    broken.finish_births()
    assert broken.n_begun() == 2
    assert [(n, p) for n, p, _ in broken.running()] == expected[:2]
    assert broken.ask() == expected[2]


def test_notes_are_kept(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    ledger.set_note("concurrent", 2)
    ledger.set_report_metrics(3, {"retain_drop": math.nan})
    again = Ledger(tmp_path, spec, create=False)
    assert again.driver_facts() == DriverFacts(concurrent=2)
    assert study_in(tmp_path).user_attrs["report:3"] == {"retain_drop": "nan"}
    assert again.has_report_metrics(3) and not again.has_report_metrics(2)


def test_a_ledger_is_not_made_over_another(tmp_path: Path) -> None:
    Ledger(tmp_path, spec_of(), create=True)
    with pytest.raises(FileExistsError, match="the ledger exists already"):
        Ledger(tmp_path, spec_of(), create=True)


def test_a_missing_study_is_not_made_by_opening(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: .* does not contain exactly 1 study"):
        Ledger(tmp_path, spec_of(), create=False)
