"""A tokenizer, data of the four roles, and the models and data that suites are run on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, write_rows
from data_roles import ROLES, DataMaker
from suite_inputs import ENGINE, QUESTIONS, moved, pairs, write_records

from core.config import DataConfig, ModelConfig, SourceConfig
from core.model.loading import LoadedModel, load_model
from core.suites import EvaluationData


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte; the end of text, id 0, also serves as padding."""
    made = byte_tokenizer()
    made.pad_token = "<eos>"
    return made


@pytest.fixture
def make_data(tmp_path: Path) -> DataMaker:
    """Files of the four roles with distinct rows; ``make_data(retain=[...])`` replaces one role's."""

    def make(changes: Mapping[str, Any] | None = None, **texts: list[str]) -> DataConfig:
        contents = {role: [f"{role} row {i}" for i in range(12)] for role in ROLES} | texts
        values: dict[str, Any] = {
            role: {"source": str(write_rows(tmp_path / f"{role}.jsonl", rows))}
            for role, rows in contents.items()
        }
        return DataConfig(**(values | {"probe_rows": 4, "report_rows": 5} | dict(changes or {})))

    return make


@pytest.fixture(scope="module")
def question_data(tmp_path_factory: pytest.TempPathFactory) -> EvaluationData:
    """Questions of all sets in the shape of TOFU."""
    folder = tmp_path_factory.mktemp("questions")
    counts = {"forget": 5, "retain": 4, "holdout": 6, "real_authors": 3, "world_facts": 3}
    return EvaluationData(
        **{
            role: SourceConfig(
                source=str(write_records(folder / f"{role}.jsonl", pairs(100 * i, count))),
                fields=QUESTIONS,
            )
            for i, (role, count) in enumerate(counts.items(), start=1)
        }
    )


@pytest.fixture(scope="module")
def text_data(tiny_data: Mapping[str, Path]) -> EvaluationData:
    """The texts of which the tiny model has memorised the forget and retain sets."""
    roles = {"forget": "forget", "retain": "retain", "holdout": "approximate", "general": "general"}
    return EvaluationData(
        **{
            role: SourceConfig(source=str(tiny_data[name]), max_tokens=64)
            for role, name in roles.items()
        }
    )


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    """The tiny model; tests leave its weights as they are."""
    return load_model(ModelConfig(source=str(tiny_model)), ENGINE)


@pytest.fixture(scope="module")
def noisy(tiny_model: Path) -> LoadedModel:
    """Another model of the same kind, which stands for the retain-only one."""
    return moved(load_model(ModelConfig(source=str(tiny_model)), ENGINE), by=0.02, seed=1)


@pytest.fixture(scope="module")
def blank(tiny_model: Path) -> LoadedModel:
    """A model that knows next to nothing."""
    return moved(load_model(ModelConfig(source=str(tiny_model)), ENGINE), by=0.2, seed=1)
