"""Preparation files and the verb ``prepare``; sweep files on prepared models, idle fields and stop rules."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import gibberish, sentences, write_rows
from pydantic import ValidationError

from core.config import PreparationConfig, StopRule
from core.errors import ConfigError
from core.store.place import CACHE_VARIABLE
from tuning import cli
from tuning.config import load_sweep, set_dotted
from tuning.prepare import load_preparation
from tuning.space import bind, corner_proposals
from tuning.validate import validate_file

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "prepare_authors.yaml"
AUTHORS = ROOT / "search_spaces" / "authors.yaml"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]
Values = dict[str, Any]


@pytest.fixture
def tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``unlearn-tune`` through its entry point, in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["unlearn-tune", *map(str, arguments)])
        capsys.readouterr()
        status: object = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        assert isinstance(status, int)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return command


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


def changed(values: Values, path: str, value: object) -> Values:
    """``values`` with a dotted path replaced."""
    result: Values = json.loads(json.dumps(values))
    *parents, last = path.split(".")
    place = result
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return result


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Values], Path]:
    """Write a file into ``specs``, beside its data."""

    def file(content: Values) -> Path:
        path = tmp_path / "specs" / "file.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return file


Write = Callable[[Values], Path]


def is_refused(done: Done, *expected: str) -> None:
    assert (done.status, done.out) == (2, ""), done
    assert done.err.splitlines()[-1].startswith(("error: ", "  - "))
    assert "Traceback" not in done.err
    for part in expected:
        assert part in done.err


# The file


def test_paths_in_a_file_are_relative_to_it_and_those_of_set_to_the_current_folder(
    values: Values, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(values)
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
        "data.approximate", {"source": "x.jsonl"}, ["data.approximate: unknown key; known keys: forget, retain"],
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
    write: Write,
    verb: str,
    path: str,
    value: Any,
    expected: list[str],
) -> None:
    is_refused(tune(verb, write(changed(values, path, value))), "file.yaml: 1 problem", *expected)
    assert not Path("cache").exists()


def test_every_problem_of_a_preparation_file_is_named_at_once(values: Values, write: Write) -> None:
    wrong = changed(changed(values, "training.epochs", "many"), "engine.zero_stag", 1)
    with pytest.raises(ConfigError, match=r"file\.yaml: 3 problems") as caught:
        load_preparation(write(wrong), overrides={"seed": -1})
    named = {problem.partition(":")[0] for problem in caught.value.problems}
    assert named == {"training.epochs", "engine.zero_stag", "seed"}


def test_a_preparation_file_that_is_not_there_is_refused(tune: Command) -> None:
    is_refused(tune("prepare", "nowhere.yaml"), "nowhere.yaml: 1 problem", "file does not exist")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        pytest.param("seed", "--set: key=value is expected, got 'seed'", id="no-value"),
        pytest.param("training.epohcs=2", "did you mean 'epochs'?", id="unknown"),
        pytest.param("seed.x=2", "file.yaml: 1 problem", id="through-a-value"),
    ],
)
def test_a_wrong_override_is_refused(
    tune: Command, values: Values, write: Write, pair: str, expected: str
) -> None:
    is_refused(tune("prepare", write(values | {"seed": 0}), "--set", pair), expected)


def test_validate_says_what_a_preparation_file_is(
    tune: Command, values: Values, write: Write
) -> None:
    done = tune("validate", write(values))
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("file.yaml: a valid preparation of 1 epochs\n")


def test_validate_takes_the_shipped_example(tune: Command) -> None:
    assert tune("validate", EXAMPLE).status == 0


def test_validate_names_a_missing_model_and_missing_rows_together(
    tune: Command, values: Values, write: Write
) -> None:
    wrong = changed(changed(values, "model.source", "./none"), "data.retain.source", "gone.jsonl")
    is_refused(
        tune("validate", write(wrong)),
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
    tune: Command, values: Values, write: Write, path: str, value: Any, expected: str
) -> None:
    done = tune("prepare", write(changed(values, path, value)), "--which", "retain_only")
    is_refused(done, f"error: {expected}")
    assert not [p for p in Path("cache").glob("prepared/*") if p.suffix != ".lock"]


def test_prepare_refuses_a_folder_of_somebody_else(
    tune: Command, values: Values, write: Write
) -> None:
    kept = Path("out/target/notes.txt")
    kept.parent.mkdir(parents=True)
    kept.write_text("mine", encoding="utf-8")
    is_refused(
        tune("prepare", write(values), "--out", "out"),
        "error: --out: out/target exists and is no link of ours; give another folder",
    )
    assert kept.read_text(encoding="utf-8") == "mine"
    assert not Path("cache").exists()


@pytest.mark.integration
def test_prepare_tells_levels_once_with_and_once_without_training(
    tune: Command, values: Values, write: Write
) -> None:
    file = write(values)
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
    tune: Command, values: Values, write: Write
) -> None:
    assert tune("prepare", write(values), "--out", "prepared").status == 0
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


# A sweep on prepared models


def test_the_shipped_sweep_writes_prompts_as_its_preparation_does() -> None:
    sweep, preparation = (yaml.safe_load(p.read_text("utf-8")) for p in (AUTHORS, EXAMPLE))
    assert sweep["model"] == preparation["model"]
    for key in ("forget", "retain", "prompt_format", "plain_template"):
        assert sweep["data"][key] == preparation["data"][key]


def sweep_values(changes: Mapping[str, Any], space: Mapping[str, Any] | None = None) -> Values:
    """A sweep over the shipped texts, with dotted keys replaced and ranges added."""
    result: Values = {
        "schema": 1,
        "name": "small",
        "model": {"source": "package:smollm2"},
        "data": {
            role: {"source": f"embedded:{role}"}
            for role in ("forget", "retain", "approximate", "general")
        },
        "method": {"forget_loss": "ihl"},
        "optimizer": {"learning_rate": 1.0e-3},
        "space": {"adapter.rank": {"categorical": [4, 8], "why": "it matters"}},
        "budget": {"trials": 2, "max_steps": 4},
    }
    for path, value in changes.items():
        result = changed(result, path, value)
    result["space"] |= {k: v | {"why": "it matters"} for k, v in (space or {}).items()}
    return result


@pytest.mark.parametrize("verb", ["validate", "sweep"])
def test_a_retain_only_model_that_is_not_there_is_refused_with_advice(
    tune: Command, write: Write, verb: str
) -> None:
    file = write(sweep_values({"model.retain_only": "./prepared/retain_only"}))
    is_refused(
        tune(verb, file),
        "file.yaml: 1 problem",
        "model.retain_only: './prepared/retain_only' is no folder",
        "; `unlearn-tune prepare` makes one",
    )
    assert not Path("runs").exists()


def test_a_retain_only_folder_that_holds_no_model_is_refused(
    tune: Command, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    file = write(sweep_values({"model.retain_only": str(tmp_path / "empty")}))
    is_refused(tune("validate", file), "model.retain_only: folder", "holds no config.json")


# Hyperparameters without effect

BETA = {"float": {"low": 0.05, "high": 0.5}}
LAYER = {"categorical": [1, 2]}
LOSSES = {"categorical": ["ihl", "npo"]}


@pytest.mark.parametrize(
    ("changes", "space", "field", "loss"),
    [
        pytest.param({}, {"method.npo.beta": BETA}, "npo.beta", "npo", id="another-loss-is-fixed"),
        pytest.param(
            {"method": {}},
            {"method.forget_loss": LOSSES, "method.simnpo.beta": BETA},
            "simnpo.beta",
            "simnpo",
            id="no-choice-has-it",
        ),
        pytest.param(
            {"method.retain_loss": "kl"},
            {"method.rmu.layer": LAYER},
            "rmu.layer",
            "rmu",
            id="nothing-looks-at-activations",
        ),
    ],
)
def test_a_searched_hyperparameter_of_a_loss_that_never_occurs_is_refused(
    write: Write, changes: Mapping[str, Any], space: Mapping[str, Any], field: str, loss: str
) -> None:
    with pytest.raises(ConfigError, match=r"file\.yaml: 1 problem") as caught:
        load_sweep(write(sweep_values(changes, space)))
    assert caught.value.problems == (
        f"space.method.{field}: has no effect here: method.forget_loss never is {loss!r}; remove it",
    )


@pytest.mark.parametrize(
    ("changes", "space", "field"),
    [
        pytest.param(
            {"method.forget_loss": "npo"}, {"method.npo.beta": BETA}, "method.npo.beta", id="fixed"
        ),
        pytest.param(
            {"method": {}},
            {
                "method.forget_loss": LOSSES,
                "method.npo.beta": BETA | {"when": {"method.forget_loss": "npo"}},
            },
            "method.npo.beta",
            id="one-of-the-choices",
        ),
        pytest.param(
            {"method.retain_loss": "activation"},
            {"method.rmu.layer": LAYER},
            "method.rmu.layer",
            id="layer-of-the-retain-loss",
        ),
        pytest.param(
            {},
            {"method.retain_weight": {"float": {"low": 0.5, "high": 2.0}}},
            "method.retain_weight",
            id="weight-of-every-loss",
        ),
    ],
)
def test_a_hyperparameter_that_some_trial_uses_is_searched(
    write: Write, changes: Mapping[str, Any], space: Mapping[str, Any], field: str
) -> None:
    spec = load_sweep(write(sweep_values(changes, space)))
    assert any(field in proposal for proposal in corner_proposals(spec))


# Stop rules


def test_stop_rules_of_a_file_reach_the_trial(write: Write) -> None:
    rules = {"el_10": 0.0499, "memorization_accuracy": 0.2994}
    spec = load_sweep(write(sweep_values({"stop": {"when": rules}})))
    for proposal in corner_proposals(spec):
        selection = bind(spec, proposal, where="test").selection
        assert selection.stop_when == tuple(
            StopRule(metric=name, at_most=value) for name, value in rules.items()
        )
        assert selection.past_target is not None  # the other rule stays


def test_without_stop_rules_a_trial_has_none(write: Write) -> None:
    spec = load_sweep(write(sweep_values({})))
    assert bind(spec, next(iter(corner_proposals(spec))), where="test").selection.stop_when == ()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("el_0", 0.1, ["stop.when.el_0", "got 'el_0'"], id="el-of-nothing"),
        pytest.param("rouge", 0.1, ["stop.when.rouge", "memorization_accuracy|", "got 'rouge'"], id="unknown"),
        pytest.param("retain_drop", 0.1, ["stop.when.retain_drop", "got 'retain_drop'"], id="not-of-forgetting"),
        pytest.param("el_10", 1.5, ["stop.when.el_10: ", "less than or equal to 1, got 1.5"], id="above-one"),
        pytest.param("el_10", "low", ["stop.when.el_10: ", "got 'low'"], id="no-number"),
    ],
)  # fmt: skip
def test_a_wrong_stop_rule_is_refused(
    tune: Command, write: Write, name: str, value: Any, expected: list[str]
) -> None:
    file = write(sweep_values({"stop": {"when": {name: value}}}))
    is_refused(tune("validate", file), "file.yaml: 1 problem", *expected)
    with pytest.raises(ConfigError, match=r"file\.yaml: 1 problem"):
        load_sweep(file)


def test_the_shipped_file_of_tdec_stops_at_the_papers_levels() -> None:
    stop = yaml.safe_load((ROOT / "search_spaces" / "tdec.yaml").read_text("utf-8"))["stop"]["when"]
    assert validate_file(ROOT / "search_spaces" / "tdec.yaml")
    assert stop == {"el_10": 0.0499, "memorization_accuracy": 0.2994}


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
