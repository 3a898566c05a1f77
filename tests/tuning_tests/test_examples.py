"""The files of ``examples/`` are valid, and go together with the sweep files and with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import ROOT

from core.data.sources import is_at_hand
from core.suites import SUITES
from tuning.evaluate import read_data
from tuning.prepare import load_preparation
from tuning.validate import validate_file

FILES = {p.name: p for p in sorted((ROOT / "examples").glob("*.yaml"))}
SWEEPS = {"authors": "authors.yaml", "tofu": "tofu_small.yaml"}
"""Name of a pair of examples to the sweep file for the models that they make."""

each_pair = pytest.mark.parametrize("name", SWEEPS)


def written(path: Path) -> dict[str, Any]:
    """Plain values of a file."""
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


def test_each_sweep_has_its_pair_of_examples() -> None:
    assert FILES.keys() == {
        f"{verb}_{name}.yaml" for verb in ("prepare", "evaluate") for name in SWEEPS
    }


@pytest.mark.parametrize("file", FILES)
def test_an_example_is_valid_without_its_data_at_hand(file: str) -> None:
    kind = "valid preparation" if file.startswith("prepare_") else "valid data for evaluate"
    first, *notes = validate_file(FILES[file]).splitlines()
    assert kind in first
    later = [r for r, s in read_data(FILES[file]).sources.items() if not is_at_hand(s)]
    assert [n.partition(":")[0] for n in notes] == [f"data.{role}" for role in later]


@each_pair
def test_a_sweep_has_the_model_the_rows_and_the_prompts_of_its_preparation(name: str) -> None:
    sweep = written(ROOT / "search_spaces" / SWEEPS[name])
    preparation = written(FILES[f"prepare_{name}.yaml"])
    assert sweep["model"] == preparation["model"]
    for key in ("forget", "retain", "prompt_format", "plain_template", "system_prompt"):
        assert sweep["data"].get(key) == preparation["data"].get(key), key


@each_pair
def test_models_are_evaluated_as_they_were_taught_on_the_roles_of_the_suite(name: str) -> None:
    data = read_data(FILES[f"evaluate_{name}.yaml"])
    taught = load_preparation(FILES[f"prepare_{name}.yaml"], overrides={}).data
    assert set(SUITES["tofu"].roles) <= data.sources.keys()
    for key in ("prompt_format", "plain_template", "system_prompt"):
        assert getattr(data, key) == getattr(taught, key), key


@each_pair
def test_no_model_is_taught_the_holdout_set_of_its_evaluation_or_the_approximate_set_of_its_sweep(
    name: str,
) -> None:
    taught = load_preparation(FILES[f"prepare_{name}.yaml"], overrides={}).data
    sweep = read_data(ROOT / "search_spaces" / SWEEPS[name])
    for unseen in (read_data(FILES[f"evaluate_{name}.yaml"]).holdout, sweep.holdout):
        assert unseen is not None and unseen.source != taught.forget.source
        if unseen.source == taught.retain.source:
            taught_rows, unseen_rows = taught.retain.rows, unseen.rows
            assert isinstance(taught_rows, tuple) and isinstance(unseen_rows, tuple)
            assert taught_rows[1] is not None and taught_rows[1] <= unseen_rows[0]
