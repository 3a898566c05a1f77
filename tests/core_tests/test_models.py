"""Target layers are found by looking at the model, whatever the architecture; base weights are watched."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from core.config import EngineConfig, ModelConfig
from core.errors import ModelError
from core.model.layers import dense_weight, linear_shape, n_blocks, oriented, resolve_targets
from core.model.loading import load_model, resolve_dtype, weights_checksum
from core.model.source import locate

SIZES = {"vocab_size": 50, "max_position_embeddings": 32}
LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
GROUPED = LAYERS | {"num_key_value_heads": 1}
SEPARATE = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = {"gate_proj", "up_proj", "down_proj"}

ARCHITECTURES: Mapping[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "gpt_neo": (
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "attention_types": [[["global", "local"], 1]],
        },
        {"q_proj", "k_proj", "v_proj", "out_proj"},
        {"c_fc", "c_proj"},
    ),
    "gpt2": (
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        {"c_attn", "c_proj"},
        {"c_fc", "c_proj"},
    ),
    "llama": (GROUPED, SEPARATE, GATED),
    "phi": (LAYERS, {"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
    "gpt_neox": (LAYERS, {"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "qwen2": (GROUPED, SEPARATE, GATED),
    "qwen3": (GROUPED | {"head_dim": 8}, SEPARATE, GATED),
}

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def tiny_network(name: str, **changes: Any) -> Any:
    """A random network of an architecture, with 50 tokens and two layers."""
    torch.manual_seed(0)
    values = SIZES | {"bos_token_id": 0, "eos_token_id": 0} | ARCHITECTURES[name][0] | changes
    config = transformers.AutoConfig.for_model(name, **values)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def last_names(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@each_architecture
def test_attention_and_mlp_are_found_in_every_layer_and_the_output_never(name: str) -> None:
    network = tiny_network(name)
    _, attention, mlp = ARCHITECTURES[name]
    found = {
        group: resolve_targets(network, group, rank=4) for group in ("attention", "mlp", "all")
    }
    assert last_names(found["attention"]) == attention
    assert last_names(found["mlp"]) == mlp
    assert len(found["attention"]) == 2 * len(attention)
    assert len(found["mlp"]) == 2 * len(mlp)
    assert sorted(found["attention"] + found["mlp"]) == sorted(found["all"])
    output = network.get_output_embeddings()
    assert all(network.get_submodule(n) is not output for n in found["all"])
    assert not set(found["attention"]) & set(found["mlp"])


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.foo = nn.Linear(3, 3)


@pytest.mark.parametrize("network", [Plain(), nn.Sequential()], ids=["only-foo", "nothing"])
def test_a_model_without_a_matching_layer_is_refused_and_shown(network: nn.Module) -> None:
    shown = "foo" if isinstance(network, Plain) else "none"
    with pytest.raises(
        ModelError,
        match=rf"adapter\.targets: no linear layer of {type(network).__name__} belongs to 'all'; "
        rf"linear layers found: {shown}",
    ):
        resolve_targets(network, "all", rank=1)


def test_a_rank_that_is_too_large_names_the_layer_its_shape_and_the_largest_rank() -> None:
    with pytest.raises(
        ModelError,
        match=r"got rank=9 for model\.layers\.0\.self_attn\.k_proj of shape \(8, 16\); use at most 8",
    ):
        resolve_targets(tiny_network("llama"), "all", rank=9)
    assert resolve_targets(tiny_network("llama"), "all", rank=8)


@each_architecture
def test_the_layers_of_chosen_blocks_are_those_of_the_whole_model_that_lie_in_them(
    name: str,
) -> None:
    network = tiny_network(name)
    assert n_blocks(network) == 2
    whole = resolve_targets(network, "all", rank=4)
    first, second = (resolve_targets(network, "all", rank=4, layers=[i]) for i in (0, 1))
    assert len(first) == len(second) == len(whole) / 2
    assert [n.replace(".0.", ".1.") for n in first] == second
    assert first + second == whole == resolve_targets(network, "all", rank=4, layers=(1, 0, 1))
    attention = resolve_targets(network, "attention", rank=4, layers=[1])
    assert attention == [n for n in resolve_targets(network, "attention", rank=4) if n in second]


def test_block_1_is_not_taken_for_block_10() -> None:
    network = tiny_network("llama", num_hidden_layers=12)
    assert n_blocks(network) == 12
    found = resolve_targets(network, "attention", rank=1, layers=[1])
    assert len(found) == 4
    assert all(n.startswith("model.layers.1.") for n in found)


def test_blocks_are_counted_and_experts_within_them_are_not() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Module()
            self.mlp.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(5))

    network = nn.Module()
    network.heads = nn.ModuleList([nn.Linear(3, 3)])
    network.layers = nn.ModuleList(Block() for _ in range(2))
    assert n_blocks(network) == 2
    found = resolve_targets(network, "mlp", rank=1, layers=[1])
    assert found == [f"layers.1.mlp.experts.{i}" for i in range(5)]


@pytest.mark.parametrize(("layers", "named"), [([2], "2"), ([0, 7, 5], "5, 7"), ([-1], "-1")])
def test_a_block_that_does_not_exist_is_refused_with_the_number_of_blocks(
    layers: list[int], named: str
) -> None:
    with pytest.raises(
        ModelError,
        match=rf"adapter\.layers: LlamaForCausalLM has 2 blocks, 0 to 1, got {named}$",
    ):
        resolve_targets(tiny_network("llama"), "all", rank=1, layers=layers)


def test_blocks_without_a_target_are_refused() -> None:
    network = nn.Module()
    network.layers = nn.ModuleList([nn.Module(), nn.Module()])
    network.layers[0].mlp = nn.Sequential(nn.Linear(3, 3))
    assert resolve_targets(network, "mlp", rank=1, layers=[0]) == ["layers.0.mlp.0"]
    with pytest.raises(ModelError, match=r"no layer of adapter\.targets lies in block 1 of Module"):
        resolve_targets(network, "mlp", rank=1, layers=[1])


def test_a_model_without_blocks_has_none_to_choose() -> None:
    network = nn.Module()
    network.mlp = nn.Sequential(nn.Linear(3, 3))
    assert resolve_targets(network, "mlp", rank=1) == ["mlp.0"]
    with pytest.raises(
        ModelError, match=r"Module has no list of blocks; leave adapter\.layers out"
    ):
        resolve_targets(network, "mlp", rank=1, layers=[0])


def test_a_rank_need_only_fit_the_chosen_blocks() -> None:
    network = tiny_network("llama")
    network.model.layers[0].mlp.up_proj = nn.Linear(3, 3)
    assert len(resolve_targets(network, "mlp", rank=8, layers=[1])) == 3
    with pytest.raises(ModelError, match=r"got rank=8 for model\.layers\.0\.mlp\.up_proj"):
        resolve_targets(network, "mlp", rank=8, layers=[0])


def test_shapes_and_weights_are_outputs_by_inputs_also_where_conv1d_stores_the_transpose() -> None:
    layer = tiny_network("gpt2").transformer.h[0].attn.c_attn
    assert tuple(layer.weight.shape) == (16, 48)
    assert linear_shape(layer) == tuple(dense_weight(layer).shape) == (48, 16)
    torch.testing.assert_close(oriented(layer, layer.weight), dense_weight(layer))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ dense_weight(layer).T + layer.bias)
    linear = nn.Linear(3, 5)
    assert linear_shape(linear) == tuple(dense_weight(linear).shape) == (5, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_checksum_detects_one_changed_element(dtype: torch.dtype) -> None:
    network = tiny_network("llama").to(dtype)
    before = weights_checksum(dict(network.named_parameters()))
    assert weights_checksum(dict(network.named_parameters())) == before
    weight = network.model.layers[1].mlp.up_proj.weight.data
    old = weight[3, 5].clone()
    weight[3, 5] = torch.nextafter(old, torch.tensor(9.0, dtype=dtype))  # one bit
    assert weights_checksum(dict(network.named_parameters())) != before
    weight[3, 5] = old
    assert weights_checksum(dict(network.named_parameters())) == before


def test_the_checksum_detects_two_elements_that_changed_places() -> None:
    network = tiny_network("llama")
    before = weights_checksum(dict(network.named_parameters()))
    weight = network.model.layers[0].mlp.up_proj.weight.data
    weight[0, 0], weight[0, 1] = weight[0, 1].clone(), weight[0, 0].clone()
    assert weights_checksum(dict(network.named_parameters())) != before


def test_a_loaded_model_is_frozen_in_evaluation_mode_and_in_the_asked_precision(
    tiny_model: Any,
) -> None:
    engine = EngineConfig(dtype="bf16", device="cpu")
    loaded = load_model(ModelConfig(source=str(tiny_model)), engine)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert {p.dtype for p in loaded.network.parameters()} == {torch.bfloat16} == {loaded.dtype}
    assert loaded.identity.startswith("content-sha256:")
    assert resolve_dtype(EngineConfig(dtype="fp32", device="cpu")) == torch.float32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "no folder!",
            r"model\.source: 'no folder!' is no folder and no hub id; give package:NAME",
        ),
        ("package:unknown", r"no packaged model 'package:unknown'; known: package:smollm2"),
    ],
)
def test_a_model_source_that_cannot_be_is_refused(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate(ModelConfig(source=source))


def test_a_folder_without_a_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="holds no config.json; it is no model folder"):
        locate(ModelConfig(source=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"model\.source: cannot load .*; give a folder written by"
    ):
        load_model(ModelConfig(source=str(tmp_path)), EngineConfig(device="cpu"))


def test_an_unreachable_hub_model_is_refused_with_its_name() -> None:
    with pytest.raises(ModelError, match=r"cannot load 'nobody/nothing'"):
        load_model(ModelConfig(source="nobody/nothing"), EngineConfig(device="cpu"))
