"""Failed trials are repeated as new ones: a finished trial is never finished again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from analytic_study import spec_of, study_in
from command_line import Command, is_refused
from driven_sweep import drive, unsynced
from small_sweep import WHY

from core.errors import UserError
from tuning.config import SweepSpec
from tuning.extending import to_retry
from tuning.ledger import Ledger
from tuning.proposals import RETRY_OF
from tuning.records import LEDGER_FILE, read_ledger
from tuning.run import Run

CHOICES = {"adapter.rank": {"categorical": [4, 8, 16]} | WHY}


def sweep(trials: int, sampler: str) -> SweepSpec:
    return spec_of(
        space=CHOICES if sampler == "grid" else {"optimizer.weight_decay": FLOAT, **CHOICES},
        sampler={"name": sampler, "n_startup_trials": 2},
        budget={"trials": trials, "max_steps": 2},
    )


FLOAT: dict[str, Any] = {"float": {"low": 0.1, "high": 0.3}} | WHY


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_retry_is_a_new_trial_with_the_same_parameters(tmp_path: Path, sampler: str) -> None:
    """In a grid that is exhausted, too."""
    spec = sweep(3, sampler)
    with unsynced():
        ledger = Ledger(tmp_path, spec, create=True)
        number, params = ledger.ask()
        ledger.begin_attempt(number)
        ledger.fail(number, "Died: killed")
        ledger.close()
        drive(spec, tmp_path)
        before = study_in(tmp_path).trials
        ledger = Ledger(tmp_path, spec, create=False)
        ledger.add_retries([0], target=3)
        assert ledger.driver_facts().target == 4
        ledger.close()
        drive(sweep(4, sampler), tmp_path)
    after = study_in(tmp_path).trials
    assert [t.state.name for t in after] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert after[3].params == params == after[0].params
    assert (after[3].user_attrs[RETRY_OF], after[3].user_attrs["proposed_by"]) == (0, "retry")
    assert [(t.state, t.user_attrs) for t in after[:3]] == [(t.state, t.user_attrs) for t in before]
    assert read_ledger(tmp_path / LEDGER_FILE)[0][3].retry_of == 0


def test_which_trials_are_repeated(sample_run: Run) -> None:
    assert to_retry(sample_run, ()) == to_retry(sample_run, (5,)) == [5]
    with pytest.raises(
        UserError, match=r"--trial 2: a failed trial is expected, of which .* has 5"
    ):
        to_retry(sample_run, (2,))
    ledger = Ledger(sample_run.path, sample_run.spec, create=False)
    ledger.add_retries([5], target=10)
    ledger.close()
    run = type(sample_run)(
        **{**vars(sample_run), "trials": read_ledger(sample_run.path / LEDGER_FILE)[0]}
    )
    assert to_retry(run, ()) == []
    with pytest.raises(UserError, match="--trial 5: trial 9 repeats it already"):
        to_retry(run, (5,))


def test_what_is_repeated_must_be_said(tune: Command, sample_run: Run) -> None:
    is_refused(tune("retry", sample_run.path), "--failed or --trial N is needed")
    is_refused(
        tune("retry", sample_run.path, "--trial", "0"), "--trial 0: a failed trial is expected"
    )
