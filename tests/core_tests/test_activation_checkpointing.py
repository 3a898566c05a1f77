"""Checkpointed blocks give the same gradients, keep less, and are plain blocks again afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from core.errors import ModelError
from core.model.layers import blocks
from core.training.checkpointing import checkpointed

LAYERS = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "llama": LAYERS | {"num_key_value_heads": 1, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
    "opt": LAYERS | {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.5},
}
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def network(name: str) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 32}
    config = transformers.AutoConfig.for_model(name, **(sizes | ARCHITECTURES[name]))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def gradients(model: Any, *, with_checkpoints: bool) -> dict[str, Tensor]:
    ids = torch.arange(24).reshape(2, 12)
    model.zero_grad()
    with checkpointed(model) if with_checkpoints else nullcontext():
        logits = model(input_ids=ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Sizes of the tensors that a pass keeps for its gradient, outside of what is computed again."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


@each_architecture
def test_the_gradients_are_the_same_bit_for_bit_also_where_training_would_drop_units(
    name: str,
) -> None:
    model = network(name)
    expected = gradients(model, with_checkpoints=False)
    found = gradients(model, with_checkpoints=True)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=0, msg=key)


@each_architecture
def test_a_gradient_of_the_last_block_alone_is_the_same(name: str) -> None:
    model = network(name).requires_grad_(False)
    blocks(model, field="")[-1].requires_grad_(True)
    expected = gradients(model, with_checkpoints=False)
    found = gradients(model, with_checkpoints=True)
    assert found.keys() == expected.keys() != set()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=0, msg=key)


@each_architecture
def test_less_is_kept_and_each_block_is_computed_twice(name: str) -> None:
    model = network(name)
    times = [0] * 4
    inner = [
        next(m for m in block.modules() if not list(m.children()))
        for block in blocks(model, field="")
    ]

    def count(i: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            times[i] += 1

        return hook

    for i, module in enumerate(inner):
        module.register_forward_pre_hook(count(i))
    with kept_bytes() as plain:
        gradients(model, with_checkpoints=False)
    assert times == [1, 1, 1, 1]
    with kept_bytes() as fewer:
        gradients(model, with_checkpoints=True)
    assert times == [3, 3, 3, 3]
    assert sum(fewer) < sum(plain) / 2


def test_afterwards_the_blocks_are_plain() -> None:
    model = network("llama")
    with pytest.raises(RuntimeError, match="stop here"), checkpointed(model):
        assert all("forward" in vars(block) for block in blocks(model, field=""))
        raise RuntimeError("stop here")
    assert not any("forward" in vars(block) for block in blocks(model, field=""))


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    with (
        pytest.raises(
            ModelError, match="engine.activation_checkpointing: Linear has no list of blocks; leave"
        ),
        checkpointed(nn.Linear(2, 2)),
    ):
        pass
