"""Adapters in difference form: nothing changes at step 0, and what is saved is an ordinary LoRA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from core.fila import weighted_low_rank
from core.model.layers import dense_weight, linear_shape, resolve_targets
from core.model.loading import weights_checksum
from core.training.adapter import (
    DifferenceAdapter,
    InitialFactors,
    load_adapter,
    save_adapter,
)
from core.training.trained import float32_on_cpu

RANK, SCALING = 4, 2.0
LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
GROUPED = LAYERS | {"num_key_value_heads": 1}

ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 24,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": GROUPED,
    "phi": LAYERS,
    "gpt_neox": LAYERS,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
}

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
each_initialisation = pytest.mark.parametrize("init", ["lora", "svd", "fila"])


def tiny_network(name: str) -> Any:
    """A random frozen network of an architecture, with 50 tokens and two layers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(name, **(sizes | ARCHITECTURES[name]))
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in network.parameters():  # biases too: a LoRA must leave them in place
        parameter.data = 0.2 * torch.randn_like(parameter)
    return network.requires_grad_(False)


def factors_of(network: Any, init: str, *, scaling: float = SCALING) -> dict[str, InitialFactors]:
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in resolve_targets(network, "all", rank=RANK):
        layer = network.get_submodule(name)
        n_out, n_in = linear_shape(layer)
        if init == "lora":
            made[name] = InitialFactors(
                a=0.3 * torch.randn(RANK, n_in, generator=generator), b=None
            )
            continue
        rho = (
            torch.exp(torch.randn(n_out, generator=generator))
            if init == "fila"
            else torch.ones(n_out)
        )
        found = weighted_low_rank(dense_weight(layer), rho, rank=RANK, scaling=scaling)
        made[name] = InitialFactors(a=found.a, b=found.b)
    return made


def attach(
    network: Any, init: str, *, scaling: float = SCALING, dtype: torch.dtype = torch.float32
) -> DifferenceAdapter:
    factors = factors_of(network, init, scaling=scaling)
    return DifferenceAdapter(network, factors, rank=RANK, scaling=scaling, dtype=dtype)


def increments(adapter: DifferenceAdapter) -> list[torch.nn.Parameter]:
    return [p for p in adapter.model.parameters() if p.requires_grad]


def move(adapter: DifferenceAdapter, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in increments(adapter):
        parameter.data = (size * torch.randn(parameter.shape, generator=generator)).to(
            parameter.dtype
        )


@torch.no_grad()
def logits_of(network: Any) -> Tensor:
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    logits: Tensor = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.float()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "adapter"


@each_initialisation
@each_architecture
def test_at_step_0_the_model_is_the_target_model_bit_for_bit(name: str, init: str) -> None:
    network = tiny_network(name)
    before = logits_of(network)
    adapter = attach(network, init)
    torch.testing.assert_close(logits_of(adapter.model), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # PEFT, for Conv1D
@each_initialisation
@each_architecture
def test_the_saved_adapter_is_through_stock_peft_what_was_trained(
    name: str, init: str, saved: Path
) -> None:
    network = tiny_network(name)
    before = logits_of(network)
    adapter = attach(network, init)
    move(adapter)
    ours = logits_of(adapter.model)
    assert float((ours - before).abs().max()) > 1e-2
    save_adapter(saved, adapter.exported(float32_on_cpu), scaling=SCALING, base="original")
    original = tiny_network(name)
    stock: Any = peft.PeftModel.from_pretrained(original, str(saved)).eval()
    assert float((logits_of(stock) - ours).abs().max()) < 1e-4
    assert stock.peft_config["default"].r == (RANK if init == "lora" else 2 * RANK)
    merged = stock.merge_and_unload()
    assert float((logits_of(merged) - ours).abs().max()) < 1e-4


@each_initialisation
@each_architecture
def test_detaching_restores_the_network_and_its_weights_never_change(name: str, init: str) -> None:
    network = tiny_network(name)
    before, checksum = logits_of(network), weights_checksum(dict(network.named_parameters()))
    names = [n for n, _ in network.named_modules()]
    for _ in range(2):  # the network is used again by the next trial
        adapter = attach(network, init)
        move(adapter)
        adapter.detach()
        assert [n for n, _ in network.named_modules()] == names
        torch.testing.assert_close(logits_of(network), before, rtol=0, atol=0)
        assert weights_checksum(dict(network.named_parameters())) == checksum
        assert not any(p.requires_grad for p in network.parameters())


@each_initialisation
def test_only_the_increments_are_trained_also_after_the_adapter_was_disabled(init: str) -> None:
    network = tiny_network("llama")
    before = logits_of(network)
    adapter = attach(network, init)
    move(adapter)
    moved = logits_of(adapter.model)
    trained = [n for n, p in adapter.model.named_parameters() if p.requires_grad]
    n_layers = len(factors_of(tiny_network("llama"), "lora"))
    assert len(trained) == 2 * n_layers
    assert all(".lora_A." in n or ".lora_B." in n for n in trained)
    with adapter.reference():
        torch.testing.assert_close(logits_of(adapter.model), before, rtol=0, atol=0)
        assert [n for n, p in adapter.model.named_parameters() if p.requires_grad] == trained
    assert [n for n, p in adapter.model.named_parameters() if p.requires_grad] == trained
    torch.testing.assert_close(logits_of(adapter.model), moved, rtol=0, atol=0)


def test_an_error_while_disabled_switches_the_adapter_on_again() -> None:
    adapter = attach(tiny_network("llama"), "svd")
    move(adapter)
    moved = logits_of(adapter.model)
    with pytest.raises(RuntimeError, match="out of memory"), adapter.reference():
        raise RuntimeError("out of memory")
    torch.testing.assert_close(logits_of(adapter.model), moved, rtol=0, atol=0)


@each_initialisation
@torch.no_grad()
def test_the_difference_is_s_times_the_change_of_the_product(init: str) -> None:
    network = tiny_network("llama")
    name = "model.layers.0.mlp.up_proj"
    factors = factors_of(network, init)[name]
    adapter = attach(network, init)
    move(adapter)
    layer: Any = adapter.model.get_submodule(f"base_model.model.{name}")
    da, db = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b0 = torch.zeros_like(db) if factors.b is None else factors.b
    change = SCALING * (
        (b0 + db).double() @ (factors.a + da).double() - b0.double() @ factors.a.double()
    )
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
    expected = x.double() @ (dense_weight(layer.base_layer).double() + change).T
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


@each_initialisation
@torch.no_grad()
def test_a_small_update_is_not_lost_in_bf16(init: str) -> None:
    """Subtracting two nearly equal bf16 products would lose it; increments keep it."""
    exact_network, low_network = tiny_network("llama"), tiny_network("llama").bfloat16()
    layer_name = "base_model.model.model.layers.0.mlp.up_proj"
    changes = []
    for network, dtype in ((exact_network, torch.float32), (low_network, torch.bfloat16)):
        adapter = attach(network, init, dtype=dtype)
        move(adapter, size=1e-5)
        layer: Any = adapter.model.get_submodule(layer_name)
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(4)).to(dtype)
        moved = layer.lora_A["default"](x)
        change = layer.lora_B["default"](moved + x @ layer.initial_a.T)
        if layer.initial_b is not None:
            change = change + moved @ layer.initial_b.T
        changes.append(change.float())
    error = float((changes[1] - changes[0]).norm() / changes[0].norm())
    assert error < 0.05


@pytest.mark.parametrize("scaling", [0.3, 1.0, 2.0, 7.5])
def test_any_scaling_survives_the_way_through_stock_peft(scaling: float, saved: Path) -> None:
    adapter = attach(tiny_network("llama"), "svd", scaling=scaling)
    move(adapter, size=0.03)
    save_adapter(saved, adapter.exported(float32_on_cpu), scaling=scaling, base="original")
    stock = load_adapter(tiny_network("llama"), saved)
    assert float((logits_of(stock) - logits_of(adapter.model)).abs().max()) < 1e-4


def test_saving_again_replaces_the_adapter(saved: Path) -> None:
    adapter = attach(tiny_network("llama"), "lora")
    for size in (0.1, 0.02):
        move(adapter, size=size)
        save_adapter(saved, adapter.exported(float32_on_cpu), scaling=SCALING, base="original")
    assert sorted(p.name for p in saved.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stock = load_adapter(tiny_network("llama"), saved)
    assert float((logits_of(stock) - logits_of(adapter.model)).abs().max()) < 1e-4


def test_the_rms_of_the_initial_factors_is_over_all_their_entries() -> None:
    network = tiny_network("llama")
    factors = factors_of(network, "svd")
    every_a = torch.cat([f.a.flatten() for f in factors.values()])
    every_b = torch.cat([f.b.flatten() for f in factors.values() if f.b is not None])
    assert attach(network, "svd").initial_rms() == pytest.approx(
        (float(every_a.square().mean().sqrt()), float(every_b.square().mean().sqrt())), rel=1e-5
    )
    assert attach(tiny_network("llama"), "lora").initial_rms()[1] == 0.0
