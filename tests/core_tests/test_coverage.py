"""Which part of a target group carries an adapter: experts in one parameter of three dimensions carry none."""

from typing import Any

import pytest
import transformers

from core.config import TargetGroup
from core.model.layers import coverage, resolve_targets

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def mixtral() -> Any:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


@pytest.mark.parametrize("group", ["all", "attention", "mlp"])
def test_a_dense_model_is_covered_whole(group: TargetGroup) -> None:
    network = llama()
    found = coverage(network, group, resolve_targets(network, group, rank=1))
    assert (found.share, found.left_out) == (1.0, ())


def test_of_a_mixture_of_experts_all_targets_are_the_attention_layers_only() -> None:
    network = mixtral()
    found = coverage(network, "all", resolve_targets(network, "all", rank=1))
    attention = 2 * 32 * 32 + 2 * 16 * 32
    experts, router = 4 * (96 * 32 + 32 * 48), 4 * 32
    assert found.share == pytest.approx(attention / (attention + experts + router))
    assert found.left_out == (
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
        "mlp.gate.weight",
    )


def test_what_was_not_asked_for_is_not_left_out() -> None:
    network = mixtral()
    targets = resolve_targets(network, "attention", rank=1)
    assert coverage(network, "attention", targets).share == 1.0


def test_layers_that_were_left_out_on_purpose_count_as_left_out() -> None:
    network = llama()
    targets = resolve_targets(network, "attention", rank=1, layers=[0])
    assert coverage(network, "attention", targets).share == pytest.approx(0.5)
