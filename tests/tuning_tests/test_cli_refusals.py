"""A command that cannot begin is refused with status 2 and a reason on stderr, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Command, Done, changed, is_refused, left_in_runs, write

# Refused before anything starts


def range_of(low: float, high: float) -> dict[str, Any]:
    return {"float": {"low": low, "high": high}, "why": "x"}


WRONG = [
    pytest.param(
        "budjet", {}, ["sweep.yaml: 1 problem", "budjet: unknown key; did you mean 'budget'?"],
        id="misspelt-key",
    ),
    pytest.param(
        "space.optimizer.learning_rat", range_of(0.1, 0.2),
        ["space.optimizer.learning_rat", "did you mean 'optimizer.learning_rate'?"],
        id="misspelt-field",
    ),
    pytest.param(
        "space.optimizer.learning_rate", range_of(0.1, 3.0),
        ["space.optimizer.learning_rate: must be <= 1.0, got 3.0"],
        id="range-outside-limits",
    ),
    pytest.param(
        "model.source", "package:nope",
        ["model.source: no packaged model 'package:nope'; known: package:smollm2"],
        id="unknown-packaged-model",
    ),
    pytest.param(
        "model.source", "./nowhere", ["model.source: './nowhere' is no folder"], id="no-model-folder"
    ),
    pytest.param(
        "data.forget.source", "embedded:nope",
        ["data.forget.source: no embedded text 'embedded:nope'; known: ", "embedded:forget"],
        id="unknown-embedded-data",
    ),
    pytest.param(
        "data.retain.source", "gone.jsonl",
        ["data.retain.source: file 'gone.jsonl' does not exist"],
        id="missing-data-file",
    ),
    pytest.param(
        "method.forget_loss", "ihll",
        ["method.forget_loss: unknown choice, got 'ihll'; did you mean 'ihl'?"],
        id="unknown-loss",
    ),
    pytest.param(
        "start_from", [{"source": "x", "values": {"adapter.rank": 3}}],
        ["start_from.0.values: adapter.rank = 3 lies outside the space (2, 4)"],
        id="start-outside-the-space",
    ),
    pytest.param("name", "../up", ["name: ", "got '../up'"], id="name-leaves-the-folder"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
@pytest.mark.parametrize("verb", ["validate", "sweep"])
def test_a_wrong_sweep_file_is_refused(
    tune: Command,
    tiny_sweep: dict[str, Any],
    verb: str,
    path: str,
    value: object,
    expected: list[str],
) -> None:
    is_refused(tune(verb, write(changed(tiny_sweep, path, value))), *expected)
    assert left_in_runs() == []


@pytest.mark.parametrize("name", ["..", "../up", "a/b", ".hidden", "-x y"])
def test_a_run_name_that_leaves_the_folder_is_refused(
    tune: Command, tiny_sweep: dict[str, Any], name: str
) -> None:
    is_refused(
        tune("sweep", write(tiny_sweep), f"--name={name}"), f"--name: {name!r} must be 1 to 64"
    )
    assert left_in_runs() == []


def test_resources_that_are_not_there_are_refused(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    file = write(changed(tiny_sweep, "resources", {"ranks_per_trial": 4, "cpus_per_rank": 1024}))
    done = tune("sweep", file)
    is_refused(
        done,
        "resources: a trial needs 4096 CPUs and 0 GPUs (4 ranks x 1024 CPUs, 0 GPUs), but only ",
        after_it_began=True,
    )
    assert left_in_runs() == []


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        pytest.param("trials", "--set: key=value is expected, got 'trials'", id="no-value"),
        pytest.param("=3", "--set: key=value is expected, got '=3'", id="no-key"),
        pytest.param("adapter.rank=[1", "--set adapter.rank: 1 problem", id="no-yaml"),
        pytest.param("budget.trails=1", "did you mean 'trials'?", id="unknown"),
        pytest.param(
            "space.adapter.rank=4",
            "change ranges in the file, not by --set; to fix a searched field, leave out `space.`: --set adapter.rank=",
            id="space",
        ),
        pytest.param("adapter.rank=0", "adapter.rank: Input should be greater", id="searched"),
    ],
)
def test_a_wrong_override_is_refused(
    tune: Command, tiny_sweep: dict[str, Any], pair: str, expected: str
) -> None:
    is_refused(tune("sweep", write(tiny_sweep), "--set", pair), expected)


@pytest.mark.parametrize("trials", ["0", "many"])
def test_a_number_of_trials_is_a_number(
    tune: Command, tiny_sweep: dict[str, Any], trials: str
) -> None:
    done = tune("sweep", write(tiny_sweep), "--trials", trials)
    assert (done.status, done.out) == (2, "")
    assert "--trials" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    "verb", ["sweep", "validate", "status", "best", "resume", "report", "train"]
)
def test_what_is_not_there_is_refused(tune: Command, verb: str) -> None:
    extra = ["--out", "x"] if verb == "train" else []
    is_refused(tune(verb, "runs/nowhere", *extra), "runs/nowhere: ")
    assert left_in_runs() == []


def test_the_installed_command_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", "status", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    is_refused(Done(done.returncode, done.stdout, done.stderr), "none: no run is there")


# Trial files


def test_train_refuses_a_wrong_trial_file(tune: Command, make_trial: Callable[..., Any]) -> None:
    plain = make_trial().model_dump(mode="json")
    file = write(changed(changed(plain, "method.forget_loss", "ihll"), "adapter.rnk", 4))
    expected = ["sweep.yaml: 2 problems", "method.forget_loss: ", "did you mean 'rank'?"]
    is_refused(tune("train", file, "--out", "x"), *expected)
    is_refused(tune("validate", file), *expected)
    assert not Path("x").exists()


def test_train_does_not_overwrite(tune: Command, make_trial: Callable[..., Any]) -> None:
    Path("there").mkdir()
    file = write(make_trial().model_dump(mode="json"))
    is_refused(tune("train", file, "--out", "there"), "--out: there exists already")
