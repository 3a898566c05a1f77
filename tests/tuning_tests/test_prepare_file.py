"""Preparation files and the verb ``prepare``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Command, WriteSpec, ends_refused
from conftest import gibberish, merged, sentences, write_rows
from pydantic import ValidationError

from core.config import PreparationConfig
from core.errors import ConfigError
from tuning.files import set_dotted
from tuning.prepare import load_preparation

pytestmark = pytest.mark.usefixtures("own_cache")

AUTHORS = ROOT / "search_spaces" / "authors.yaml"

Values = dict[str, Any]


@pytest.fixture
def values(tiny_model: Path, tmp_path: Path) -> Values:
    """A preparation of the tiny model; its paths are relative to the file's folder."""
    folder = tmp_path / "specs"
    folder.mkdir()
    write_rows(folder / "forget.jsonl", gibberish(31, 4))
    write_rows(folder / "retain.jsonl", sentences(32, 8))
    return {
        "schema": 1,
        "model": {"source": str(tiny_model)},
        "data": {"forget": {"source": "forget.jsonl"}, "retain": {"source": "retain.jsonl"}},
        "training": {
            "epochs": 1,
            "optimizer": {"learning_rate": 1.0e-3},
            "batch": {"global_batch_size": 4},
        },
        "engine": {"dtype": "fp32", "device": "cpu"},
    }


# The file


def test_paths_in_a_file_are_relative_to_it_and_those_of_set_to_the_current_folder(
    values: Values, write_spec: WriteSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_spec(values)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("forget.jsonl", "retain.jsonl"):
        write_rows(here / name, sentences(33, 2))
    config = load_preparation(file, overrides={"data.forget.source": "forget.jsonl", "seed": 3})
    assert config.data.forget.source == str(here / "forget.jsonl")
    assert config.data.retain.source == str(tmp_path / "specs" / "retain.jsonl")
    assert config.seed == 3


WRONG = [
    pytest.param("trainign.epochs", 3, ["trainign: unknown key; did you mean 'training'?"], id="section"),
    pytest.param("training.epoch", 3, ["training.epoch: unknown key; did you mean 'epochs'?"], id="key"),
    pytest.param(
        "data.approximate",
        {"source": "x.jsonl"},
        [
            "data.approximate: unknown key; known keys: prompt_format, plain_template, system_prompt, "
            "forget, retain"
        ],
        id="role",
    ),
    pytest.param("training.epochs", 0, ["training.epochs: ", "greater than or equal to 1, got 0"], id="epochs"),
    pytest.param(
        "training.optimizer.learning_rate", 1000.0,
        ["training.optimizer.learning_rate: ", "less than or equal to 1, got 1000.0"],
        id="rate",
    ),
    pytest.param(
        "training.optimizer", {}, ["training.optimizer.learning_rate: required, but absent"], id="no-rate"
    ),
    pytest.param("data.prompt_format", "chatt", ["got 'chatt'; did you mean 'chat'?"], id="format"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
@pytest.mark.parametrize("verb", ["validate", "prepare"])
def test_a_wrong_preparation_file_is_refused(
    tune: Command,
    values: Values,
    write_spec: WriteSpec,
    verb: str,
    path: str,
    value: Any,
    expected: list[str],
) -> None:
    ends_refused(
        tune(verb, write_spec(merged(values, {path: value}))), "file.yaml: 1 problem", *expected
    )
    assert not Path("cache").exists()


def test_every_problem_of_a_preparation_file_is_named_at_once(
    values: Values, write_spec: WriteSpec
) -> None:
    wrong = merged(values, {"training.epochs": "many", "engine.zero_stag": 1})
    with pytest.raises(ConfigError, match=r"file\.yaml: 3 problems") as caught:
        load_preparation(write_spec(wrong), overrides={"seed": -1})
    named = {problem.partition(":")[0] for problem in caught.value.problems}
    assert named == {"training.epochs", "engine.zero_stag", "seed"}


def test_a_preparation_file_that_is_not_there_is_refused(tune: Command) -> None:
    ends_refused(tune("prepare", "nowhere.yaml"), "nowhere.yaml: 1 problem", "file does not exist")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        pytest.param("seed", "--set: key=value is expected, got 'seed'", id="no-value"),
        pytest.param("training.epohcs=2", "did you mean 'epochs'?", id="unknown"),
        pytest.param("seed.x=2", "file.yaml: 1 problem", id="through-a-value"),
    ],
)
def test_a_wrong_override_is_refused(
    tune: Command, values: Values, write_spec: WriteSpec, pair: str, expected: str
) -> None:
    ends_refused(tune("prepare", write_spec(values | {"seed": 0}), "--set", pair), expected)


def test_validate_says_what_a_preparation_file_is(
    tune: Command, values: Values, write_spec: WriteSpec
) -> None:
    done = tune("validate", write_spec(values))
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("file.yaml: a valid preparation of 1 epochs\n")


def test_validate_names_a_missing_model_and_missing_rows_together(
    tune: Command, values: Values, write_spec: WriteSpec
) -> None:
    wrong = merged(values, {"model.source": "./none", "data.retain.source": "gone.jsonl"})
    ends_refused(
        tune("validate", write_spec(wrong)),
        "file.yaml: 2 problems",
        "model.source: './none' is no folder",
        "data.retain.source: file 'gone.jsonl' does not exist",
    )


# The verb


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        pytest.param(
            "data.retain.n", 3, "data.retain: 3 rows to train on are fewer than the 4", id="few-rows"
        ),
        pytest.param(
            "data.retain.source", "gone.jsonl", "data.retain.source: file 'gone.jsonl' does not exist",
            id="no-file",
        ),
        pytest.param(
            "model.source", "./none", "model.source: './none' is no folder and no hub id", id="no-model"
        ),
    ],
)  # fmt: skip
def test_prepare_refuses_what_it_cannot_train_on(
    tune: Command, values: Values, write_spec: WriteSpec, path: str, value: Any, expected: str
) -> None:
    done = tune("prepare", write_spec(merged(values, {path: value})), "--which", "retain_only")
    ends_refused(done, f"error: {expected}")
    assert not [p for p in Path("cache").glob("prepared/*") if p.suffix != ".lock"]


def test_prepare_refuses_a_folder_of_somebody_else(
    tune: Command, values: Values, write_spec: WriteSpec
) -> None:
    kept = Path("out/target/notes.txt")
    kept.parent.mkdir(parents=True)
    kept.write_text("mine", encoding="utf-8")
    ends_refused(
        tune("prepare", write_spec(values), "--out", "out"),
        "error: --out: out/target exists and is no link of ours; give another folder",
    )
    assert kept.read_text(encoding="utf-8") == "mine"
    assert not Path("cache").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"training.batch": {"global_batch_size": 8, "micro_batch_size": 3}},
            "training.batch.global_batch_size: must equal micro_batch_size x",
            id="batches-that-do-not-divide",
        ),
        pytest.param(
            {"engine": {"ranks": 2}},
            "engine.ranks: a model is prepared by one process, got 2",
            id="two-ranks",
        ),
        pytest.param(
            {"training.batch": {"whole_forget_set": True}},
            "training.batch.whole_forget_set: has no meaning here",
            id="whole-forget-set",
        ),
    ],
)
def test_what_prepare_cannot_do_is_refused_before_it_begins(
    changes: Mapping[str, Any], problem: str
) -> None:
    values: dict[str, Any] = {
        "schema": 1,
        "model": {"source": "package:smollm2"},
        "data": {"forget": {"source": "authors:forget"}, "retain": {"source": "authors:retain"}},
        "training": {"epochs": 1, "optimizer": {"learning_rate": 1e-4}},
    }
    for path, value in changes.items():
        set_dotted(values, path, value, where="test")
    with pytest.raises(ValidationError, match=re.escape(problem)):
        PreparationConfig.model_validate(values)


@pytest.mark.integration
def test_prepare_tells_levels_once_with_and_once_without_training(
    tune: Command, values: Values, write_spec: WriteSpec
) -> None:
    file = write_spec(values)
    first = tune("prepare", file, "--out", "prepared")
    assert first.status == 0
    assert [line.split()[:3] for line in first.out.splitlines()] == [
        ["target:", "forget", "accuracy"],
        ["retain_only:", "forget", "accuracy"],
    ]
    assert "target: step 3/3  loss " in first.err and "retain_only: step 2/2  loss " in first.err
    again = tune("prepare", file, "--json", "--out", "prepared")
    assert again.status == 0 and " step " not in again.err
    found = json.loads(again.out)
    for name in ("target", "retain_only"):
        folder = Path(found[name]["folder"])
        assert Path("prepared", name).resolve() == folder.resolve()
        assert set(found[name]) == {"folder", "forget", "retain"}
        assert found[name]["forget"]["nll"] > 0 and 0 <= found[name]["forget"]["accuracy"] <= 1
        line = next(x for x in first.out.splitlines() if x.startswith(name))
        assert f"({found[name]['forget']['nll']:.3f} nats per token)" in line
        assert line.endswith(str(folder))


@pytest.mark.integration
def test_the_shipped_sweep_takes_prepared_models_by_set(
    tune: Command, values: Values, write_spec: WriteSpec
) -> None:
    assert tune("prepare", write_spec(values), "--out", "prepared").status == 0
    done = tune(
        "sweep", AUTHORS, "--dry-run", "--json", "--trials", 2,
        "--set", "model.source=prepared/target",
        "--set", "model.retain_only=prepared/retain_only",
    )  # fmt: skip
    assert done.status == 0, done.err
    model = json.loads(done.out)["spec"]["model"]
    assert model == {
        "source": str(Path("prepared/target").resolve()),
        "retain_only": str(Path("prepared/retain_only").resolve()),
    }
