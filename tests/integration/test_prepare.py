"""Prepared models: the target has learned both sets, the retain-only model never saw one; each is made once."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import gibberish, merged, sentences, write_rows
from safetensors.torch import load_file, save_file

from core.config import EngineConfig, ModelConfig, PreparationConfig, TrialConfig
from core.config.prompting import Prompting
from core.data.taught import wording_notice
from core.data.tokens import TokenRow
from core.errors import ModelError, NothingToForgetError, UserError
from core.metrics.probes import Level
from core.model.loading import load_model
from core.preparation import PreparedModel, Which, prepare_model
from core.store.durable import read_lines
from core.store.place import CACHE_VARIABLE
from core.training.warm import Warm
from core.worker import probes
from tuning.prepare import prepare_models

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]
Maker = Callable[..., PreparationConfig]
Told = list[tuple[int, int, float]]

N_FORGET, N_RETAIN = 8, 24
BATCH, EPOCHS = 8, 25
MAX_TOKENS = 64
TEMPLATE = "Question: {prompt}\nAnswer: "


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Files of rows of unequal length that the tiny model has not seen."""
    folder = tmp_path_factory.mktemp("rows")
    pairs = [
        {"question": " ".join(text.split()[:3]), "answer": f"{'so ' * (i % 4)}it is {i}"}
        for i, text in enumerate(sentences(15, N_FORGET))
    ]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(p) + "\n" for p in pairs), encoding="utf-8")
    return {
        "forget": write_rows(folder / "forget.jsonl", gibberish(11, N_FORGET)),
        "other": write_rows(folder / "other.jsonl", gibberish(12, N_FORGET)),
        "retain": write_rows(folder / "retain.jsonl", sentences(13, N_RETAIN)),
        "questions": questions,
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which nothing is prepared yet."""
    return tmp_path_factory.mktemp("prepared-cache")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(cache: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(cache))
        yield


@pytest.fixture(scope="module")
def preparation(tiny_model: Path, rows: Mapping[str, Path]) -> Maker:
    """Build a short preparation of the tiny model, with some dotted fields changed."""
    values = {
        "schema": 1,
        "model": {"source": str(tiny_model)},
        "data": {
            "forget": {"source": str(rows["forget"]), "max_tokens": MAX_TOKENS},
            "retain": {"source": str(rows["retain"]), "max_tokens": MAX_TOKENS},
        },
        "training": {
            "epochs": 1,
            "optimizer": {"learning_rate": 3e-3, "schedule": "linear", "warmup_steps": 2},
            "batch": {"global_batch_size": BATCH},
        },
        "engine": {"dtype": "fp32", "device": "cpu", "zero_stage": 1},
    }

    def make(changes: Mapping[str, Any] | None = None) -> PreparationConfig:
        return PreparationConfig.model_validate(merged(values, changes or {}))

    return make


def made(config: PreparationConfig, which: Which) -> tuple[PreparedModel, Told]:
    """A prepared model, and what was told of the steps that made it."""
    told: Told = []

    def tell(step: int, of: int, loss: float) -> None:
        told.append((step, of, loss))

    return prepare_model(config, which, tell=tell), told


@pytest.fixture(scope="module")
def learned(preparation: Maker) -> Mapping[str, tuple[PreparedModel, Told]]:
    """Target and retain-only model, trained until they know their rows."""
    config = preparation({"training.epochs": EPOCHS})
    return {"target": made(config, "target"), "retain_only": made(config, "retain_only")}


def naive_level(folder: Path, pieces: list[tuple[str, str]]) -> Level:
    """Level of texts after their contexts, one row and one token at a time, by transformers alone."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    total, hits, count = 0.0, 0, 0
    for context, text in pieces:
        n_context = len(tokenizer(context)["input_ids"])
        ids = tokenizer(context + text)["input_ids"]
        ids = ([*ids, tokenizer.eos_token_id] if context else ids)[:MAX_TOKENS]
        with torch.no_grad():
            log_probs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for t in range(max(1, n_context), len(ids)):
            total -= float(log_probs[t - 1, ids[t]])
            hits += int(log_probs[t - 1].argmax()) == ids[t]
            count += 1
    return Level(nll=total / count, accuracy=hits / count)


def texts(path: Path) -> list[tuple[str, str]]:
    return [("", json.loads(line)["text"]) for line in path.read_text("utf-8").splitlines()]


def same_level(found: Level, expected: Level) -> None:
    assert found.nll == pytest.approx(expected.nll, rel=1e-5)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-12)


# What the models know


def test_the_target_knows_the_forget_set_better_than_the_retain_only_model(
    learned: Mapping[str, tuple[PreparedModel, Told]],
    tiny_model: Path,
    rows: Mapping[str, Path],
) -> None:
    target, retain_only = (learned[w][0] for w in ("target", "retain_only"))
    base = naive_level(tiny_model, texts(rows["forget"]))
    assert target.forget.nll < base.nll - 1.0 < retain_only.forget.nll
    assert target.forget.accuracy > retain_only.forget.accuracy + 0.4
    assert min(target.retain.accuracy, retain_only.retain.accuracy) > 0.8


@pytest.mark.parametrize("which", ["target", "retain_only"])
def test_the_levels_agree_with_a_loop_over_single_rows(
    learned: Mapping[str, tuple[PreparedModel, Told]], rows: Mapping[str, Path], which: Which
) -> None:
    found = learned[which][0]
    same_level(found.forget, naive_level(found.folder, texts(rows["forget"])))
    same_level(found.retain, naive_level(found.folder, texts(rows["retain"])))


def test_of_a_question_and_its_answer_the_answer_counts(
    preparation: Maker, rows: Mapping[str, Path]
) -> None:
    asked = {
        "data.prompt_format": "plain",
        "data.plain_template": TEMPLATE,
        "data.retain": {
            "source": str(rows["questions"]),
            "max_tokens": MAX_TOKENS,
            "fields": {"prompt": "question", "answer": "answer"},
        },
    }
    found, _ = made(preparation(asked), "retain_only")
    pairs = [json.loads(line) for line in rows["questions"].read_text("utf-8").splitlines()]
    head = TEMPLATE.rstrip()
    pieces = [(head.format(prompt=p["question"]), f" {p['answer']}") for p in pairs]
    same_level(found.retain, naive_level(found.folder, pieces))
    model = load_model(ModelConfig(source=str(found.folder)), EngineConfig(device="cpu"))
    told = [
        wording_notice(
            Prompting(**wording),
            model.tokenizer,
            [TokenRow((1, 2), 1)],
            source="it",
            location=str(found.folder),
        )
        for wording in ({"prompt_format": "phi"}, {"prompt_format": "llama2"})  # its own, another
    ]
    assert told[0] is None
    assert "it was taught prompts as 'Question: PROMPT\\nAnswer:'" in str(told[1])


@pytest.mark.parametrize(
    ("which", "n_rows"), [("target", N_FORGET + N_RETAIN), ("retain_only", N_RETAIN)]
)
def test_every_step_of_all_epochs_is_told(
    learned: Mapping[str, tuple[PreparedModel, Told]], which: Which, n_rows: int
) -> None:
    _, told = learned[which]
    n_steps = n_rows * EPOCHS // BATCH
    assert [(step, of) for step, of, _ in told] == [(i, n_steps) for i in range(1, n_steps + 1)]
    losses = [loss for _, _, loss in told]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_steps_that_do_not_divide_the_rows_are_rounded_up(
    preparation: Maker, rows: Mapping[str, Path]
) -> None:
    _, told = made(preparation({"data.retain.n": 20}), "retain_only")
    assert [(step, of) for step, of, _ in told] == [(1, 3), (2, 3), (3, 3)]


def test_micro_batches_of_rows_of_unequal_length_do_not_change_the_training(
    preparation: Maker,
) -> None:
    losses = {}
    for size in (2, BATCH):
        changes = {"training.batch.micro_batch_size": size, "seed": 5}
        losses[size] = [loss for _, _, loss in made(preparation(changes), "target")[1]]
    assert losses[2] == pytest.approx(losses[BATCH], rel=1e-4)


# Made once


@pytest.mark.parametrize("which", ["target", "retain_only"])
def test_the_second_call_trains_nothing_and_writes_nothing(
    learned: Mapping[str, tuple[PreparedModel, Told]], preparation: Maker, which: Which
) -> None:
    first, _ = learned[which]
    before = {
        p: p.stat().st_mtime_ns for p in first.folder.iterdir()
    }  # the folder's is its last use
    again, told = made(preparation({"training.epochs": EPOCHS}), which)
    assert (again, told) == (first, [])
    assert {p: p.stat().st_mtime_ns for p in first.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "value"),
    [
        pytest.param("seed", 1, id="seed"),
        pytest.param("training.epochs", 2, id="epochs"),
        pytest.param("training.optimizer.learning_rate", 1e-3, id="rate"),
        pytest.param("data.retain.n", 16, id="rows"),
        pytest.param("data.retain.max_tokens", 12, id="length-of-rows"),
    ],
)
def test_what_changes_the_training_makes_another_model(
    preparation: Maker, change: str, value: Any
) -> None:
    plain, _ = made(preparation(), "retain_only")
    other, told = made(preparation({change: value}), "retain_only")
    assert told
    assert other.folder != plain.folder
    assert other.retain != plain.retain


def test_the_retain_only_model_does_not_depend_on_the_forget_rows(
    preparation: Maker, rows: Mapping[str, Path]
) -> None:
    changes = {"data.forget.source": str(rows["other"]), "seed": 7}
    plain, _ = made(preparation({"seed": 7}), "retain_only")
    same, told = made(preparation(changes), "retain_only")
    assert (same.folder, told) == (plain.folder, [])
    assert same.retain == plain.retain
    assert same.forget != plain.forget  # measured on the rows that are named now
    target, _ = made(preparation({"seed": 7}), "target")
    another, told = made(preparation(changes), "target")
    assert told and another.folder != target.folder


def test_the_same_preparation_gives_the_same_weights_in_another_cache(
    preparation: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preparation({"seed": 8})
    one, first = made(config, "target")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    other, second = made(config, "target")
    assert (other.folder.name, second) == (one.folder.name, first)
    assert other.folder.parent == tmp_path / "prepared"
    weights = [load_file(p.folder / "model.safetensors") for p in (one, other)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


# What others make of them


def test_the_folder_is_an_ordinary_model_and_its_tokenizer_the_base_models(
    learned: Mapping[str, tuple[PreparedModel, Told]], tiny_model: Path
) -> None:
    folder = learned["target"][0].folder
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    assert network.config.architectures == base.config.architectures
    before = dict(base.named_parameters())
    for name, weights in network.named_parameters():
        assert weights.shape == before[name].shape
        assert not torch.equal(weights, before[name]), name
    tokenizers = [transformers.AutoTokenizer.from_pretrained(f) for f in (folder, tiny_model)]
    ids = [t("a quiet harbour 7")["input_ids"] for t in tokenizers]
    assert ids[0] == ids[1]


def trial_on(
    make_trial: TrialMaker, rows: Mapping[str, Path], *, target: Path, retain_only: Path
) -> TrialConfig:
    return make_trial(
        {
            "model": {"source": str(target), "retain_only": str(retain_only)},
            "data.forget.source": str(rows["forget"]),
            "data.retain.source": str(rows["retain"]),
            "selection.max_steps": 1,
        }
    )


def test_a_trial_on_both_starts_at_their_levels(
    learned: Mapping[str, tuple[PreparedModel, Told]],
    make_trial: TrialMaker,
    rows: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    target, retain_only = (learned[w][0] for w in ("target", "retain_only"))
    config = trial_on(make_trial, rows, target=target.folder, retain_only=retain_only.folder)
    assert [p.step for p in probes(config, folder=tmp_path, warm=Warm())] == [1]
    first = read_lines(tmp_path / "history.jsonl")[0]
    assert first["target_nll"] == pytest.approx(retain_only.forget.nll, rel=1e-5)
    assert first["metrics"]["forget_nll"] == pytest.approx(target.forget.nll, rel=1e-5)
    assert first["metrics"]["forget_closure"] == pytest.approx(0.0, abs=1e-6)


def test_a_model_that_never_saw_the_forget_set_has_nothing_to_forget(
    learned: Mapping[str, tuple[PreparedModel, Told]],
    make_trial: TrialMaker,
    rows: Mapping[str, Path],
) -> None:
    folder = learned["retain_only"][0].folder
    config = trial_on(make_trial, rows, target=folder, retain_only=folder)
    with pytest.raises(
        NothingToForgetError, match=r"data\.forget: there is nothing to forget: .*retain_only"
    ):
        list(probes(config, warm=Warm()))


# Refused


def test_a_loss_that_is_not_finite_ends_the_training_and_leaves_no_model(
    preparation: Maker, tiny_model: Path, cache: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    before = set((cache / "prepared").glob("*/config.json"))
    with pytest.raises(
        ModelError,
        match=r"training\.optimizer\.learning_rate: the loss is nan at step 1 of 4; lower it, got 0\.003",
    ):
        made(preparation({"model.source": str(damaged)}), "target")
    assert set((cache / "prepared").glob("*/config.json")) == before


# Links


@pytest.mark.parametrize(
    ("which", "names"),
    [
        pytest.param("both", ["target", "retain_only"], id="both"),
        pytest.param("retain_only", ["retain_only"], id="one"),
    ],
)
def test_the_output_folder_gets_a_link_to_each_model(
    preparation: Maker, tmp_path: Path, which: Any, names: list[Which]
) -> None:
    said: list[str] = []
    out = tmp_path / "prepared"
    found = prepare_models(preparation(), which=which, out=out, say=said.append)
    assert list(found) == names
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    for name in names:
        model, told = made(preparation(), name)
        assert (out / name).is_symlink() and (out / name).resolve() == model.folder
        assert told == []
        assert found[name] == {
            "folder": str(model.folder),
            "forget": vars_of(model.forget),
            "retain": vars_of(model.retain),
        }
        assert f"{name}: preparing" in said


def vars_of(level: Level) -> dict[str, float]:
    return {"nll": level.nll, "accuracy": level.accuracy}


def test_progress_names_the_first_step_every_twentieth_and_the_last(preparation: Maker) -> None:
    said: list[str] = []
    config = preparation({"training.epochs": 7, "seed": 9})
    prepare_models(config, which="retain_only", out=None, say=said.append)
    steps = [line.split(" step ")[1].split("/")[0] for line in said if " step " in line]
    assert steps == ["1", "20", "21"]
    assert all(line.endswith(" nats per token") for line in said if " step " in line)
    assert [line for line in said if " step " not in line] == [
        "retain_only: preparing",
        f"forget: {N_FORGET} rows read, {N_FORGET} kept with {n_tokens(config, 'forget')} tokens; "
        "nothing is left out",
        f"retain: {N_RETAIN} rows read, {N_RETAIN} kept with {n_tokens(config, 'retain')} tokens; "
        "nothing is left out",
    ]


def n_tokens(config: PreparationConfig, role: str) -> int:
    """Tokens of one byte, all of them."""
    lines = Path(getattr(config.data, role).source).read_text(encoding="utf-8").splitlines()
    return sum(len(json.loads(line)["text"].encode()) for line in lines)


def test_links_of_an_earlier_call_are_replaced(preparation: Maker, tmp_path: Path) -> None:
    for seed in (0, 1):
        config = preparation({"seed": seed})
        prepare_models(config, which="retain_only", out=tmp_path, say=lambda _: None)
        model, _ = made(config, "retain_only")
        assert (tmp_path / "retain_only").resolve() == model.folder


@pytest.mark.parametrize("name", ["target", "retain_only"])
def test_a_folder_of_somebody_else_is_refused_before_anything_is_made(
    preparation: Maker, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    kept = tmp_path / name / "notes.txt"
    kept.write_text("mine", encoding="utf-8")
    said: list[str] = []
    with pytest.raises(
        UserError, match=rf"--out: .*{name} exists and is no link of ours; give another folder"
    ):
        prepare_models(preparation(), which="both", out=tmp_path, say=said.append)
    assert (said, kept.read_text(encoding="utf-8")) == ([], "mine")
