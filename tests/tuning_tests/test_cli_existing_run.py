"""A run that is there already is not overwritten, and is resumed as it began only."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from analytic_study import spec_of
from command_line import Command, changed, is_refused, write

from core.errors import UserError
from core.store.durable import commit_yaml
from tuning.records import LEDGER_FILE, LOCK_FILE, SPEC_FILE
from tuning.run import Run
from tuning.sameness import refuse_existing, refuse_other_contents
from tuning.sweep import exhausted


def specification(run: Run) -> dict[str, Any]:
    return run.spec.plain()


def test_an_existing_run_is_refused_and_resume_is_named(tune: Command, sample_run: Run) -> None:
    done = tune("sweep", write(specification(sample_run)))
    is_refused(done, "runs/sample exists already", "`unlearn-tune resume runs/sample`")
    assert "differs" not in done.err


def test_what_the_hardware_decided_is_no_difference(tune: Command, sample_run: Run) -> None:
    """A driver writes the resolved dtype and device into the run; the sweep file leaves them open."""
    file = write(specification(sample_run))
    resolved = changed(specification(sample_run), "engine", {"dtype": "fp32", "device": "cpu"})
    commit_yaml(sample_run.path / SPEC_FILE, {"sweep": resolved})
    assert "differs" not in tune("sweep", file).err
    assert '+  "dtype": "bf16"' in tune("sweep", file, "--set", "engine.dtype=bf16").err


def test_an_existing_run_is_refused_with_what_differs(tune: Command, sample_run: Run) -> None:
    file = write(changed(specification(sample_run), "method.forget_loss", "ga"))
    done = tune("sweep", file, "--set", "budget.max_steps=9")
    is_refused(done, "The sweep file differs from the run's:", "resume runs/sample")
    for line in ('-  "forget_loss": "ihl"', '+  "forget_loss": "ga"', '+  "max_steps": 9'):
        assert line in done.err


def test_a_folder_that_is_no_run_is_not_overwritten(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    kept = Path("runs/tiny/notes.txt")
    file = write(tiny_sweep)
    kept.parent.mkdir(parents=True)
    kept.write_text("mine", encoding="utf-8")
    is_refused(tune("sweep", file), "runs/tiny exists already")
    assert kept.read_text(encoding="utf-8") == "mine"


def test_halves_that_a_kill_left_are_no_run(tmp_path: Path) -> None:
    for name in (LOCK_FILE, SPEC_FILE, f".{SPEC_FILE}.0f", f".{LEDGER_FILE}.1e"):
        (tmp_path / name).touch()
    refuse_existing(spec_of(), tmp_path)
    (tmp_path / ".mine").touch()
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(spec_of(), tmp_path)


def test_a_space_that_ends_before_the_budget_says_so() -> None:
    assert "ends after 27 trials, not 40" in exhausted(27, 40)


def test_resume_refuses_a_changed_file(tune: Command, sample_run: Run) -> None:
    file = write(changed(specification(sample_run), "sampler.seed", 99))
    done = tune("resume", "runs/sample", "--spec", file)
    expected = ["the sweep file changed since the run began", '-  "seed": 3', '+  "seed": 99']
    is_refused(done, *expected, after_it_began=True)


def test_resume_refuses_a_run_that_another_driver_holds(tune: Command, sample_run: Run) -> None:
    with (sample_run.path / LOCK_FILE).open("w") as file:
        file.write("pid 1 on here")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = tune("resume", "runs/sample")
    expected = "error: runs/sample: another driver holds this run (pid 1 on here)"
    is_refused(done, expected, after_it_began=True)


NOW = {"model": "content-sha256:ab", "data.forget": "12"}


@pytest.mark.parametrize(
    ("before", "message"),
    [
        pytest.param(
            {"model": "content-sha256:cd", "data.forget": "12"},
            r"^runs/x: model changed since the run began; restore the old contents",
            id="another-model",
        ),
        pytest.param(
            {"model": "content-sha256:ab", "data.forget": "34"},
            r"^runs/x: data\.forget changed since the run began; .*data\.prompt_format",
            id="other-rows",
        ),
        pytest.param(
            {"model": "sha256:ef", "data.forget": "12"},
            r"^runs/x: an earlier release began this run and named model by the bytes of all files; .* "
            r"go on with the release that began it, or start a new run",
            id="named-by-an-earlier-release",
        ),
        pytest.param(
            {"model": "sha256:ef", "data.forget": "34"},
            r"^runs/x: model, data\.forget changed since the run began",
            id="an-earlier-release-and-other-rows",
        ),
    ],
)
def test_resume_refuses_another_model_or_other_rows(before: dict[str, str], message: str) -> None:
    refuse_other_contents({"model": NOW["model"]}, NOW, Path("runs/x"))  # a part is new
    with pytest.raises(UserError, match=message):
        refuse_other_contents(before, NOW, Path("runs/x"))
