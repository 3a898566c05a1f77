"""The verb export writes a trial's adapter with its card, and overwrites nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import Command, is_refused

from core.config import parse_trial
from core.store.durable import commit_yaml
from tuning.files import read_yaml
from tuning.run import Run
from tuning.space import bind


@pytest.fixture
def exportable(sample_run: Run) -> Run:
    """The sample with the files that a worker leaves beside its history."""
    for trial in sample_run.trials:
        if trial.adapter is None:
            continue
        folder = sample_run.path / trial.adapter
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights of %d" % trial.number)
        config = {"peft_type": "LORA", "base_model_name_or_path": "/cache/smollm2"}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        made = bind(sample_run.spec, trial.params, where="test")
        commit_yaml(folder.parent / "trial.yaml", made.model_dump(mode="json"))
    return sample_run


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
    assert (out / "adapter_model.safetensors").read_bytes() == b"weights of 0"
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "/cache/smollm2"
    card = (out / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "base_model": "/cache/smollm2",
        "library_name": "peft",
        "tags": ["unlearning", "lora"],
    }
    assert "| retain drop (nats per token) | - | 0.060 | 0.050 |" in card
    for name in exportable.spec.space:
        assert f"`{name}`" in card


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
    assert "Base model: `org/model`" in Path("x/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        pytest.param("1", "exceeds the hard limit", id="pruned"),
        pytest.param("5", "CUDA out of memory", id="failed"),
        pytest.param("8", "RUNNING", id="running"),
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
