"""A model is named by what computes: a change of that renames it, and nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import ModelConfig
from core.errors import ModelError
from core.model.source import model_identity

Change = Callable[[Path], object]


def identity(folder: Path) -> str:
    return model_identity.__wrapped__(ModelConfig(source=str(folder)))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, with a chat template."""
    copied = tmp_path / "model"
    shutil.copytree(tiny_model, copied)
    (copied / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    return copied


def in_json(name: str, *path: str, value: Any) -> Change:
    """Set a value in a JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        place = values
        for key in path[:-1]:
            place = place[key]
        assert place.get(path[-1]) != value
        place[path[-1]] = value
        (folder / name).write_text(json.dumps(values), encoding="utf-8")

    return change


def in_weights(name: str, function: Callable[[Tensor], Tensor]) -> Change:
    """Replace a tensor."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = function(tensors[name].clone()).contiguous()
        save_file(tensors, folder / "model.safetensors")

    return change


def reordered(folder: Path) -> None:
    """The same JSON with its keys in another order."""
    for path in folder.glob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(dict(reversed(values.items()))), encoding="utf-8")


def dealt_out(folder: Path) -> None:
    """The same tensors in two files, with an index and other metadata."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: tensors[name] for name in names if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def written(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


WEIGHT = "model.layers.0.mlp.up_proj.weight"


def one_bit(weight: Tensor) -> Tensor:
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    return weight


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            in_json("tokenizer_config.json", "local_files_only", value="another"),
            id="tokenizer-loaded-without-network",
        ),
        pytest.param(in_json("tokenizer_config.json", "name_or_path", value="/a/b"), id="origin"),
        pytest.param(in_json("config.json", "transformers_version", value="4.0"), id="version"),
        pytest.param(in_json("config.json", "_name_or_path", value="/a/b"), id="origin-of-weights"),
        pytest.param(
            in_json("tokenizer.json", "truncation", value={"max_length": 8}), id="last-call"
        ),
        pytest.param(reordered, id="order-of-keys"),
        pytest.param(dealt_out, id="files-of-tensors"),
        pytest.param(written("LICENSE.txt", "free"), id="licence"),
        pytest.param(written("training_args.json", "{}"), id="record-of-training"),
    ],
)
def test_what_computes_nothing_does_not_rename_a_model(folder: Path, change: Change) -> None:
    before = identity(folder)
    change(folder)
    assert identity(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(in_weights(WEIGHT, one_bit), id="one-bit-of-a-weight"),
        pytest.param(in_weights(WEIGHT, lambda w: w.reshape(64, 128)), id="shape-of-a-tensor"),
        pytest.param(in_weights(WEIGHT, lambda w: w.view(torch.int32)), id="type-of-a-tensor"),
        pytest.param(in_json("config.json", "rms_norm_eps", value=0.1), id="architecture"),
        pytest.param(
            in_json("generation_config.json", "eos_token_id", value=7), id="end-of-an-answer"
        ),
        pytest.param(
            in_json("tokenizer.json", "model", "vocab", "new", value=999), id="vocabulary"
        ),
        pytest.param(
            in_json("tokenizer_config.json", "add_bos_token", value=True), id="special-tokens"
        ),
        pytest.param(written("chat_template.jinja", "{{ messages }}"), id="chat-template"),
        pytest.param(written("tokenizer.model", "pieces"), id="sentencepiece"),
    ],
)
def test_what_computes_renames_a_model(folder: Path, change: Change) -> None:
    before = identity(folder)
    change(folder)
    assert identity(folder) != before


def test_two_tensors_that_changed_names_rename_a_model(folder: Path) -> None:
    before = identity(folder)
    tensors = load_file(folder / "model.safetensors")
    other = WEIGHT.replace("layers.0", "layers.1")
    tensors[WEIGHT], tensors[other] = tensors[other], tensors[WEIGHT]
    save_file(tensors, folder / "model.safetensors")
    assert identity(folder) != before


@pytest.mark.parametrize(
    ("name", "rule"),
    [("model.safetensors", "is no safetensors file"), ("config.json", "is not text in UTF-8")],
)
def test_a_torn_file_is_named(folder: Path, name: str, rule: str) -> None:
    (folder / name).write_bytes(b"\x10\0\0\0\0\0\0\0{torn")
    with pytest.raises(ModelError, match=rf"{name}.* {rule}.*; copy or download it again"):
        identity(folder)
