"""How many trials a resumed sweep is to reach: what the command line says, or the sweep file that it names."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_line import Command, changed, is_refused, write

from tuning.extending import asked_trials, remarks
from tuning.records import LOCK_FILE
from tuning.run import Run

BEGAN, TARGET = 10, 10
"""Trials of the sample's file, and those that it aims at; nine have begun, and eight ended."""


def with_trials(run: Run, n: int) -> dict[str, object]:
    return changed(run.spec.plain(), "budget.trials", n)


def spec_with(run: Run, n: int) -> Run:
    budget = run.spec.budget.model_copy(update={"trials": n})
    return replace(run, spec=run.spec.model_copy(update={"budget": budget}))


@pytest.mark.parametrize(
    ("trials", "in_file", "expected"),
    [
        pytest.param(None, None, None, id="nothing-is-said"),
        pytest.param(12, None, 12, id="the-command-line"),
        pytest.param(None, 24, 24, id="more-in-the-file"),
        pytest.param(12, 24, 12, id="the-command-line-first"),
        pytest.param(None, 6, None, id="fewer-in-the-file"),
    ],
)
def test_a_larger_number_of_the_named_file_counts(
    sample_run: Run, trials: int | None, in_file: int | None, expected: int | None
) -> None:
    assert (sample_run.spec.budget.trials, sample_run.target) == (BEGAN, TARGET)
    spec = None if in_file is None else spec_with(sample_run, in_file).spec
    assert asked_trials(sample_run, trials=trials, spec=spec) == expected
    said = " ".join(remarks(sample_run, trials=trials, spec=spec))
    assert (f"goes on to {expected} trials (before: 10)" in said) is (expected is not None)


def test_fewer_trials_in_the_named_file_are_not_passed_over_in_silence(sample_run: Run) -> None:
    (said,) = remarks(sample_run, trials=None, spec=spec_with(sample_run, 6).spec)
    assert "goes on to 10 trials, not to the 6 that budget.trials of the sweep file is now" in said


@pytest.mark.parametrize(
    ("n", "is_said"), [(24, True), (BEGAN, False)], ids=["raised", "as-it-was"]
)
def test_a_number_that_was_raised_in_the_file_of_the_run_is_not_passed_over_in_silence(
    sample_run: Run, tmp_path: Path, n: int, is_said: bool
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(with_trials(sample_run, n)), encoding="utf-8")
    run = replace(sample_run, facts=replace(sample_run.facts, file=str(file)))
    said = "".join(remarks(run, trials=None, spec=None))
    assert ("not to the 24" in said and "give --trials 24" in said) is is_said
    file.write_text("no: sweep", encoding="utf-8")
    assert remarks(run, trials=None, spec=None) == []


def test_a_run_that_has_all_its_trials_says_so(sample_run: Run) -> None:
    driver = replace(sample_run.driver, target=8)
    (said,) = remarks(replace(sample_run, driver=driver), trials=None, spec=None)
    assert "all 8 trials have ended, so no more are tried; for more give --trials K" in said


def test_resume_says_where_it_goes_before_it_goes(tune: Command, sample_run: Run) -> None:
    file = write(with_trials(sample_run, 24))
    with (sample_run.path / LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = tune("resume", "runs/sample", "--spec", file)
    assert done.err.startswith("runs/sample: goes on to 24 trials (before: 10)\n")
    is_refused(done, "another driver holds this run", after_it_began=True)
