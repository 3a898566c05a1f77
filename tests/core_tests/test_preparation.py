"""What cannot be prepared is refused before a step is made, by place, rule and value, and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import gibberish, merged, sentences, write_rows
from pydantic import ValidationError

from core.config import ModelConfig, PreparationConfig
from core.errors import DataError, ModelError
from core.preparation import Which, prepare_model
from core.store.place import CACHE_VARIABLE

BATCH = 8

Values = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    path = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(path))
    return path


@pytest.fixture
def values(tiny_model: Path, tmp_path: Path) -> Values:
    """Plain values of a preparation of the tiny model; valid."""
    forget = write_rows(tmp_path / "forget.jsonl", gibberish(21, 3))
    retain = write_rows(tmp_path / "retain.jsonl", sentences(22, BATCH))
    return {
        "schema": 1,
        "model": {"source": str(tiny_model)},
        "data": {"forget": {"source": str(forget)}, "retain": {"source": str(retain)}},
        "training": {
            "epochs": 1,
            "optimizer": {"learning_rate": 1e-3},
            "batch": {"global_batch_size": BATCH},
        },
        "engine": {"dtype": "fp32", "device": "cpu"},
    }


def changed(values: Values, changes: Mapping[str, Any]) -> PreparationConfig:
    return PreparationConfig.model_validate(merged(values, changes))


def never_told(step: int, of: int, loss: float) -> None:
    raise AssertionError(f"step {step} of {of} was made")


def models_in(cache: Path) -> list[Path]:
    """Whatever lies among the prepared models, half-made ones included; locks stay."""
    return [p for p in (cache / "prepared").glob("*") if p.suffix != ".lock"]


# Configuration


def test_the_values_of_these_tests_are_valid(values: Values) -> None:
    config = changed(values, {})
    assert (config.seed, config.data.prompt_format, config.training.epochs) == (0, "auto", 1)
    assert config.model == ModelConfig(source=values["model"]["source"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        pytest.param(
            {"training.optimizer.learning_rate": 1e3},
            r"learning_rate\n.*less than or equal to 1",
            id="rate-above-its-limit",
        ),
        pytest.param({"training.epochs": 0}, r"epochs\n.*greater than or equal to 1", id="epochs"),
        pytest.param(
            {"data.general": {"source": "x.jsonl"}},
            r"data\.general\n.*Extra inputs are not permitted",
            id="a-role-that-is-not-trained-on",
        ),
        pytest.param(
            {"data.plain_template": "Question: "},
            r"plain_template\n.*should match pattern",
            id="template-without-prompt",
        ),
        pytest.param({"schema": 2}, r"schema\n.*should be 1", id="another-schema"),
    ],
)
def test_a_wrong_field_is_refused(values: Values, changes: Mapping[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        changed(values, changes)


# Rows and models


@pytest.mark.parametrize(
    ("which", "keep", "n_rows"),
    [
        pytest.param("retain_only", BATCH - 1, BATCH - 1, id="retain-set"),
        pytest.param("target", 2, 2, id="also-for-the-target"),
    ],
)
def test_fewer_rows_than_a_batch_are_refused(
    values: Values, cache: Path, which: Which, keep: int, n_rows: int
) -> None:
    with pytest.raises(
        DataError,
        match=rf"data\.retain: {n_rows} rows to train on are fewer than the {BATCH} of one optimiser step; "
        r"give more rows, or lower training\.batch\.global_batch_size",
    ):
        prepare_model(changed(values, {"data.retain.n": keep}), which, tell=never_told)
    assert models_in(cache) == []


@pytest.mark.parametrize("role", ["forget", "retain"])
@pytest.mark.parametrize("which", ["target", "retain_only"])
def test_rows_that_are_not_there_are_refused(
    values: Values, cache: Path, which: Which, role: str
) -> None:
    """Also the forget rows of a retain-only model: it is measured on them."""
    config = changed(values, {f"data.{role}.source": "gone.jsonl"})
    with pytest.raises(
        DataError, match=rf"data\.{role}\.source: file 'gone\.jsonl' does not exist"
    ):
        prepare_model(config, which, tell=never_told)
    assert models_in(cache) == []


@pytest.mark.parametrize(
    ("record", "match"),
    [
        pytest.param(
            {"txt": "a river"}, r"row 2: no field 'text'; fields are 'txt'; did you mean 'txt'\?",
            id="no-field",
        ),
        pytest.param({"text": 3}, r"row 2: field 'text' must be text", id="a-number"),
    ],
)  # fmt: skip
def test_a_row_without_text_is_refused(
    values: Values, cache: Path, tmp_path: Path, record: Mapping[str, Any], match: str
) -> None:
    path = tmp_path / "forget.jsonl"
    lines = ({"text": "a quiet river"}, record)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"data\.forget: .*forget\.jsonl {match}"):
        prepare_model(changed(values, {}), "target", tell=never_told)
    assert models_in(cache) == []


@pytest.mark.parametrize("which", ["target", "retain_only"])
def test_a_retain_set_with_a_forget_row_is_refused(
    values: Values, cache: Path, tmp_path: Path, which: Which
) -> None:
    """A model that was taught it is no retain-only model."""
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    texts = [f"a quiet river {i}" for i in range(BATCH + 1)]
    forget.write_text(json.dumps({"text": texts[-1]}) + "\n", encoding="utf-8")
    retain.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    with pytest.raises(
        DataError,
        match=rf"data\.retain: .*row {BATCH + 1} shares a row with data\.forget: .*forget\.jsonl row 1",
    ):
        prepare_model(changed(values, {}), which, tell=never_told)
    assert models_in(cache) == []


def test_a_token_id_outside_the_vocabulary_is_refused(
    values: Values, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, np.array([[5, 6, 7], [5, 100_000, 7]]))
    with pytest.raises(
        DataError,
        match=r"data\.forget: .*tokens\.npy row 2: token id 100000 is outside the vocabulary of 257",
    ):
        prepare_model(
            changed(values, {"data.forget": {"source": str(path)}}), "target", tell=never_told
        )
    assert models_in(cache) == []


def test_a_prompt_in_a_chat_format_that_the_tokenizer_has_not_is_refused(
    values: Values, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "who?", "answer": "nobody"}\n', encoding="utf-8")
    pairs = {"source": str(path), "fields": {"prompt": "question", "answer": "answer"}}
    with pytest.raises(
        DataError, match=r"data\.prompt_format: chat needs a tokenizer with a chat template"
    ):
        prepare_model(
            changed(values, {"data.forget": pairs, "data.prompt_format": "chat"}),
            "target",
            tell=never_told,
        )
    assert models_in(cache) == []


def test_a_base_model_that_is_not_there_is_refused(values: Values, cache: Path) -> None:
    with pytest.raises(
        ModelError, match=r"model\.source: './no/model' is no folder and no hub id; give package:"
    ):
        prepare_model(changed(values, {"model.source": "./no/model"}), "target", tell=never_told)
    assert models_in(cache) == []
