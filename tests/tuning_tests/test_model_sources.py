"""A model source is judged alike wherever it is given, and the message names that place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import EngineConfig, ModelConfig, TrialConfig
from core.errors import ConfigError, ModelError
from core.evaluation import EvaluationRequest, refuse_missing_models
from core.measuring.baselines import baseline_levels
from core.model.loading import load_model
from core.model.source import locate, problem
from core.training.ranks import Group
from core.training.warm import Warm
from tuning.files import parse_sweep
from tuning.validate import refuse_missing

SOURCES = [
    pytest.param("hub:org/name", None, id="hub"),
    pytest.param("hub:x", None, id="hub-without-organisation"),
    pytest.param("org/name", None, id="hub-without-kind"),
    pytest.param("{folder}/model", None, id="model-folder"),
    pytest.param("hub:", "is no hub id; give hub:ORG/NAME", id="hub-without-name"),
    pytest.param("hub:foo bar/baz", "is no hub id", id="hub-with-a-space"),
    pytest.param("foo bar/baz", "is no folder and no hub id", id="a-space"),
    pytest.param("other:org/name", "is no folder and no hub id", id="unknown-kind"),
    pytest.param("nowhere", "is no folder and no hub id", id="one-word"),
    pytest.param("./nowhere", "is no folder and no hub id", id="missing-relative-folder"),
    pytest.param("../nowhere", "is no folder and no hub id", id="missing-sibling"),
    pytest.param("a/b/c", "is no folder and no hub id", id="too-deep"),
    pytest.param("{folder}/nowhere", "is no folder and no hub id", id="missing-absolute-folder"),
    pytest.param("{folder}", "holds no config.json", id="folder-without-a-model"),
    pytest.param("package:none", "known: package:smollm2", id="unknown-package"),
    pytest.param("package:", "known: package:smollm2", id="package-without-name"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is no model, with one in it that could be."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def validated(**model: str) -> None:
    values: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "model": model,
        "data": {
            role: {"source": f"embedded:{role}"}
            for role in ("forget", "retain", "approximate", "general")
        }
        | {"probe_rows": 8, "report_rows": 8},
        "method": {"forget_loss": "ihl"},
        "space": {"optimizer.learning_rate": {"categorical": [1e-3], "why": "it matters"}},
        "budget": {"trials": 1, "max_steps": 1},
    }
    refuse_missing(parse_sweep(values, where="file.yaml"), where="file.yaml")


@pytest.mark.parametrize(("source", "expected"), SOURCES)
def test_validating_and_loading_judge_alike(
    folder: Path, source: str, expected: str | None
) -> None:
    source = source.format(folder=folder)
    if expected is None:
        assert problem(source, field="model.source") is None
        validated(source=source)
        validated(source="hub:org/name", retain_only=source)
        assert locate(ModelConfig(source=source))[0] == source.removeprefix("hub:")
        return
    message = problem(source, field="model.source")
    assert message is not None and expected in message
    with pytest.raises(ModelError) as located:
        locate(ModelConfig(source=source))
    assert str(located.value) == message
    with pytest.raises(ConfigError) as refused:
        validated(source=source)
    assert refused.value.problems == (message,)
    with pytest.raises(ConfigError) as other:
        validated(source="hub:org/name", retain_only=source)
    advised = message.replace("model.source", "model.retain_only", 1)
    assert other.value.problems == (f"{advised}; `unlearn-tune prepare` makes one",)


def test_a_packaged_model_is_known_without_a_download() -> None:
    assert problem("package:smollm2", field="MODEL") is None


def test_the_revision_is_that_of_a_hub_model_only(folder: Path) -> None:
    assert locate(ModelConfig(source="org/name", revision="abc")) == ("org/name", "abc")
    assert locate(ModelConfig(source="hub:org/name", revision="abc")) == ("org/name", "abc")
    kept = str(folder / "model")
    assert locate(ModelConfig(source=kept, revision="abc")) == (kept, None)


@pytest.mark.parametrize(
    ("option", "models"),
    [
        ("MODEL", {"model": "./nowhere"}),
        ("--retain-only", {"model": "hub:org/name", "retain_only": "./nowhere"}),
        ("--initial", {"model": "hub:org/name", "initial": "./nowhere"}),
    ],
)
def test_the_message_names_the_option(option: str, models: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=f"^{option}: './nowhere' is no folder and no hub id"):
        refuse_missing_models(EvaluationRequest(suites=["mia"], **models), ["mia"])  # type: ignore[arg-type]


def test_a_model_that_cannot_be_read_is_named_by_its_field(folder: Path) -> None:
    config = ModelConfig(source=str(folder / "model"))
    with pytest.raises(ModelError, match="^--initial: cannot load '"):
        load_model(config, EngineConfig(device="cpu"), field="--initial")


def test_a_retain_only_model_that_cannot_be_read_is_not_taken_for_the_target(
    folder: Path, make_trial: Callable[..., TrialConfig]
) -> None:
    trial = make_trial({"model.retain_only": str(folder / "model")})
    group = Group(rank=0, size=1)
    with pytest.raises(ModelError, match=r"^model\.retain_only: cannot load '"):
        baseline_levels(trial, Warm(), group, part="probe")
