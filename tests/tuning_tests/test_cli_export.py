"""The verb export writes a trial's adapter with its card, and overwrites nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Command, is_refused
from safetensors.numpy import load_file, save_file

from core.config import parse_trial
from core.store.durable import commit_yaml
from tuning.files import read_yaml
from tuning.repetition import repetition
from tuning.run import Run
from tuning.space import bind


@pytest.fixture
def exportable(sample_run: Run) -> Run:
    """The sample with the files that a worker leaves beside its history."""
    return with_adapters(sample_run)


def with_adapters(run: Run) -> Run:
    """The run with the files that a worker leaves beside its history."""
    for trial in run.trials:
        if trial.adapter is None:
            continue
        folder = run.path / trial.adapter
        folder.mkdir(parents=True, exist_ok=True)
        weights = {"of": np.full(3, trial.number)}
        save_file(weights, folder / "adapter_model.safetensors")
        config = {  # as an earlier release wrote it: what PEFT says of itself, and the cache of a machine
            "peft_type": "LORA",
            "base_model_name_or_path": "/home/someone/.cache/models/smollm2-b179c9523d0e6a0f",
            "r": 32,
            "lora_alpha": 40,
            "target_modules": ["model.layers.0.mlp.up_proj"],
            "fan_in_fan_out": False,
            "velora_config": None,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        made = bind(run.spec, trial.params, where="test")
        commit_yaml(folder.parent / "trial.yaml", made.model_dump(mode="json"))
    return run


def test_export_writes_adapter_card_and_trial(tune: Command, exportable: Run) -> None:
    done = tune("export", exportable.path, "--out", "best")
    assert (done.status, done.out) == (0, "best\n")
    assert "wrote trial 0 to best" in done.err
    out = Path("best")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "trial.yaml",
    ]
    assert load_file(out / "adapter_model.safetensors")["of"].tolist() == [0, 0, 0]
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "package:smollm2"
    assert (config["r"], config["lora_alpha"]) == (32, 40)
    assert "velora_config" not in config
    card = (out / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header == {"library_name": "peft", "tags": ["unlearning", "lora"]}
    assert "Base model: `package:smollm2`" in card
    assert "`--max-lora-rank 32` or more" in card
    assert "| retain drop (nats per token) | - | 0.060 | 0.050 |" in card
    for name in exportable.spec.space:
        assert f"`{name}`" in card


def test_best_of_a_repeat_run_is_what_stands_for_the_recommended_configuration(
    tune: Command, sample_run: Run, build_run: Callable[..., Run], trial_script: Callable[..., Any]
) -> None:
    """Trial 0 has the highest value, of one seed; over both its configuration is the worse one."""
    levels = [2.9, 2.4, 1.2, 2.4]
    run = build_run(
        "sample-repeat",
        scripts=[trial_script(probes=[(nll, 0.01, 0.01)] * 6) for nll in levels],
        changes=repetition(sample_run, top=2, seeds=2).plain(),
        notes={"target": 4},
    )
    done = tune("export", with_adapters(run).path, "--out", "best")
    assert (done.status, done.out) == (0, "best\n")
    assert "wrote trial 1 to best" in done.err
    assert "this is a repeat run: trial 3 of sample is recommended over seeds" in done.err
    card = Path("best/README.md").read_text(encoding="utf-8")
    assert "This is a repeat run: trial 3 of sample is recommended over seeds" in card


def test_an_exported_trial_is_a_trial_file(tune: Command, exportable: Run) -> None:
    tune("export", exportable.path, "--trial", 3, "--out", "three")
    text = Path("three/trial.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Trial 3 of sample. Run it again: unlearn-tune train trial.yaml")
    trial = parse_trial(read_yaml(Path("three/trial.yaml")), where="test")
    assert trial == bind(exportable.spec, exportable.trials[3].params, where="test")
    done = tune("validate", "three/trial.yaml")
    assert (done.status, done.out.splitlines()[0]) == (0, "three/trial.yaml: a valid trial")


def test_export_records_another_base(tune: Command, exportable: Run) -> None:
    tune("export", exportable.path, "--out", "x", "--base", "org/model")
    config = json.loads(Path("x/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "org/model"
    card = Path("x/README.md").read_text(encoding="utf-8")
    assert "Base model: `org/model`" in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "org/model"


def test_nothing_that_is_exported_names_a_place_of_the_machine(
    tune: Command, exportable: Run, tmp_path: Path
) -> None:
    for trial in exportable.trials:
        path = exportable.path / str(trial.adapter) / ".." / "trial.yaml"
        if not path.is_file():
            continue
        values = read_yaml(path)
        values["data"]["forget"]["source"] = str(tmp_path / "data" / "forget.jsonl")
        values["model"]["retain_only"] = str(tmp_path.parent / "retain_only")
        values["data"]["plain_template"] = "/ask {prompt}"
        commit_yaml(path, values)
    tune("export", exportable.path, "--out", "x")
    for path in Path("x").iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes()
        assert b"/home/" not in path.read_bytes()
    found = read_yaml(Path("x/trial.yaml"))
    assert found["data"]["forget"]["source"] == "data/forget.jsonl"
    assert found["model"]["retain_only"] == "../retain_only"
    assert found["data"]["plain_template"] == "/ask {prompt}"


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        pytest.param(32, "--rank: must be below the adapter's rank of 32, got 32", id="its-own"),
        pytest.param(64, "got 64; leave --rank out to export it as it is", id="higher"),
    ],
)
def test_a_rank_that_is_no_lower_is_refused(
    tune: Command, exportable: Run, rank: int, expected: str
) -> None:
    is_refused(tune("export", exportable.path, "--out", "x", "--rank", rank), expected)
    assert not Path("x").exists()


def test_a_whole_model_has_no_rank(tune: Command, exportable: Run) -> None:
    (exportable.path / str(exportable.trials[0].adapter) / "config.json").write_text("{}")
    done = tune("export", exportable.path, "--out", "x", "--rank", 4)
    is_refused(done, "--rank: trial 0 trained all weights and has no adapter; leave --rank out")


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        pytest.param("1", "exceeds the hard limit", id="pruned"),
        pytest.param("5", "CUDA out of memory", id="failed"),
        pytest.param("8", "INTERRUPTED", id="interrupted"),
    ],
)
def test_a_trial_without_an_adapter_is_not_exported(
    tune: Command, exportable: Run, trial: str, expected: str
) -> None:
    done = tune("export", exportable.path, "--trial", trial, "--out", "x")
    is_refused(done, f"trial {trial} has no adapter: ", expected, "choose another with --trial")
    assert not Path("x").exists()


def test_export_does_not_overwrite(tune: Command, exportable: Run) -> None:
    Path("there").mkdir()
    is_refused(tune("export", exportable.path, "--out", "there"), "--out: there exists already")
    assert list(Path("there").iterdir()) == []


def test_export_from_a_run_without_its_trials_is_refused(tune: Command, sample_run: Run) -> None:
    done = tune("export", sample_run.path, "--out", "x")
    is_refused(done, "trials/0000/attempt-1/adapter: the adapter is not there")
    assert not Path("x").exists()
