"""What is saved of an adapter is what its readers know: stock PEFT of old releases, and vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.training.adapter import save_adapter
from core.training.lora_format import CONFIG_FILE, WEIGHTS_FILE, SavedLora

FIELDS_OF_PEFT_0_7 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("bias", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config"),
}
"""Releases up to 0.14 raise a TypeError at any other; later ones warn."""


def save(folder: Path, *, rank: int = 4, scaling: float = 2.0, base: str = "org/model") -> Path:
    names = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
    tensors = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(rank, 6)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(8, rank)
    save_adapter(folder, tensors, scaling=scaling, base=base)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return found


def test_the_configuration_has_no_field_that_old_releases_do_not_know(tmp_path: Path) -> None:
    found = config_of(save(tmp_path / "a"))
    assert found.keys() <= FIELDS_OF_PEFT_0_7
    assert (found["r"], found["lora_alpha"], found["base_model_name_or_path"]) == (
        4,
        8,
        "org/model",
    )


def test_vllm_s_reader_accepts_the_folder(tmp_path: Path) -> None:
    """Its rules: plain bias, no saved modules, three required fields, tensors by layer, A and B."""
    folder = save(tmp_path / "a")
    config, tensors = config_of(folder), load_file(folder / WEIGHTS_FILE)
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert config["bias"] == "none" and not config.get("modules_to_save")
    assert not config.get("use_dora") and not config.get("use_rslora")
    layers = set()
    for name, tensor in tensors.items():
        layer, side, last = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert name.startswith("base_model.model.") and last == "weight"
        assert tensor.shape[0 if side == "lora_A" else 1] == config["r"]
        layers.add(layer)
    assert layers == set(config["target_modules"])


@pytest.mark.parametrize(
    ("scaling", "alpha"),
    [pytest.param(2.0, 8, id="whole"), pytest.param(0.3, 4, id="folded-into-the-factors")],
)
def test_alpha_is_a_whole_number_and_the_strength_is_kept(
    tmp_path: Path, scaling: float, alpha: int
) -> None:
    folder = save(tmp_path / "a", scaling=scaling)
    found, tensors = config_of(folder)["lora_alpha"], load_file(folder / WEIGHTS_FILE)
    assert found == alpha and isinstance(found, int)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    torch.testing.assert_close(product * found / 4, torch.full((8, 6), 4 * scaling))


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    found = SavedLora.read(save(tmp_path / "a", rank=3, scaling=0.5))
    assert (found.rank, found.scaling, found.is_transposed) == (3, 1.0, False)
    assert found.targets == ("model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 1), (2, 8), (16, 16), (24, 32), (257, 320), (512, 512), (1024, None)]
)
def test_vllm_s_limit_is_the_next_that_it_takes(rank: int, expected: int | None) -> None:
    saved = SavedLora(base="x", rank=rank, alpha=1.0, targets=("a",), is_transposed=False)
    assert saved.max_lora_rank == expected
