"""A dry run says on which scale auto will count damage, and why, and which limits are off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, changed, left_in_runs, write
from conftest import gibberish, write_rows

from core.data.counts import Counts
from tuning.files import parse_sweep
from tuning.foresight import RULE, foresee

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def auto_sweep(tiny_sweep: dict[str, Any]) -> dict[str, Any]:
    """The tiny sweep, whose model has its retain set by heart, with limits that ask the baseline."""
    values = changed(tiny_sweep, "constraints", [{"metric": "auto", "at_most": 0.1}])
    values["pruning"] = {"retain": {"metrics": ["auto"], "patience": 1, "grace_steps": 1}}
    return values


def test_a_dry_run_measures_the_baseline_and_says_which_scale_and_why(
    tune: Command, auto_sweep: dict[str, Any]
) -> None:
    done = tune("sweep", write(auto_sweep), "--dry-run")
    said = "scale of damage to retained text: auto is retain_forgetting: the retain set is known by heart"
    assert done.status == 0
    assert said in " ".join(done.out.split())
    assert "warning: " not in done.out
    assert left_in_runs() == []
    as_json = tune("sweep", write(auto_sweep), "--dry-run", "--json")
    limits = json.loads(as_json.out)["limits"]
    assert limits["scale"].startswith("auto is retain_forgetting: ")
    assert limits["warnings"] == []


def test_a_dry_run_warns_of_a_limit_far_off_and_of_a_late_guard(
    tune: Command, auto_sweep: dict[str, Any]
) -> None:
    far = changed(auto_sweep, "constraints", [{"metric": "auto", "at_most": 0.01}])
    late = changed(far, "pruning.retain.patience", 3)
    shown = json.loads(tune("sweep", write(late), "--dry-run", "--json").out)["limits"]["warnings"]
    assert len(shown) == 2
    assert shown[0].startswith("the retain guard can first act on its limit at probe 4 of 4")
    assert (
        "the limit of retain_forgetting, 0.01 from the untouched model, lies far below" in shown[1]
    )


def test_a_baseline_that_cannot_be_taken_is_a_warning(
    tune: Command, auto_sweep: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing is to be forgotten of text that is as new to the model as the approximate set."""
    forget = write_rows(tmp_path / "new.jsonl", gibberish(9, 8))
    new = changed(auto_sweep, "data.forget.source", str(forget))
    limits = json.loads(tune("sweep", write(new), "--dry-run", "--json").out)["limits"]
    assert limits["scale"] == RULE
    assert (
        "the baseline cannot be taken on this machine: data.forget: there is nothing to forget"
        in limits["warnings"][0]
    )


def test_without_the_model_the_data_or_the_time_the_rule_is_said(
    auto_sweep: dict[str, Any],
) -> None:
    spec = parse_sweep(auto_sweep, where="test")
    counts = {"forget": Counts(rows=1, tokens=10)}
    assert foresee(spec, n_parameters=None, counts=counts).scale == RULE
    assert foresee(spec, n_parameters=10**5, counts=None).scale == RULE
    lines = foresee(spec, n_parameters=10**15, counts=counts).lines
    assert lines == [f"scale of damage to retained text: {RULE}"]


def test_a_file_that_names_its_metrics_needs_no_baseline(tiny_sweep: dict[str, Any]) -> None:
    spec = parse_sweep(tiny_sweep, where="test")
    found = foresee(spec, n_parameters=10**5, counts={})
    assert found.scale == ""
    assert not Path("cache").exists()
