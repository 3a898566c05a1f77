"""Tiny models with random weights, and rows for them: what is measured of gradients is checked on these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from core.data.tokens import TokenRow, TokenSplits
from core.model.layers import resolve_targets
from core.model.loading import LoadedModel

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "llama": LAYERS | {"num_key_value_heads": 1, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},  # stores transposes
    "phi": LAYERS | {"intermediate_size": 24},  # with biases
}
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def loaded(name: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A tiny model of an architecture, with random weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(name, **(sizes | ARCHITECTURES[name]))
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in network.parameters():  # larger than at the start of training
        parameter.data = 0.2 * torch.randn_like(parameter)
    return LoadedModel(
        network=network.to(dtype).requires_grad_(False),
        tokenizer=None,
        identity=f"tiny {name}",
        dtype=dtype,
        device=torch.device("cpu"),
    )


def token_rows(seed: int, lengths: Sequence[int]) -> tuple[TokenRow, ...]:
    """Random rows of these lengths; a third of each is context."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]
    return tuple(TokenRow(tuple(ids), n_context=len(ids) // 3) for ids in drawn)


def splits() -> TokenSplits:
    """Rows of unequal length, and more of the retain set than are measured."""
    parts = {
        "forget": token_rows(1, (5, 12, 8, 3, 9)),
        "retain_train": token_rows(2, (7, 4, 11, 6, 10, 9)),
    }
    return TokenSplits(parts=parts, identity={name: name for name in parts})


def layers_of(model: LoadedModel) -> dict[str, nn.Module]:
    """Every linear layer, by name."""
    names = resolve_targets(model.network, "all", rank=1)
    return {name: model.network.get_submodule(name) for name in names}
