"""Models that remember otherwise than by keys and values: greedy decoding is still that of whole passes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen3_5TextConfig,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

from core.model.decoding import Way, generate, rows_at_once, suffix_continuations, way_of
from core.model.stepwise import states_bytes

VOCABULARY = 23


def qwen3_5() -> Any:
    """Linear attention in three of four blocks."""
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            eos_token_id=0,
        )
    )


def mamba() -> Any:
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)
    )


def rwkv() -> Any:
    """It takes no cache of transformers, so whole rows are read."""
    return RwkvForCausalLM(
        RwkvConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            attention_hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
        )
    )


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    )


MADE: Mapping[str, tuple[Callable[[], Any], Way]] = {
    "qwen3_5": (qwen3_5, "states"),
    "mamba": (mamba, "states"),
    "rwkv": (rwkv, "rows"),
    "gpt2": (gpt2, "columns"),
}


def random_network(name: str) -> Any:
    torch.manual_seed(0)
    network = MADE[name][0]().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.normal_(0.0, 0.35)
    return network


@pytest.fixture(scope="module", params=list(MADE))
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, random_network(request.param)


def whole(network: Any, prompt: Sequence[int], count: int, stops: Sequence[int] = ()) -> list[int]:
    """Greedy tokens from one whole forward pass each."""
    ids = list(prompt)
    for _ in range(count):
        token = int(network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def test_the_way_is_the_first_that_is_right(named: tuple[str, Any]) -> None:
    name, network = named
    assert way_of(network) == MADE[name][1]


def test_answers_are_those_of_whole_passes(named: tuple[str, Any]) -> None:
    _, network = named
    asked = prompts(5, 9, 5, 2)
    found = generate(network, asked, max_new_tokens=7, stop_ids=(), batch_size=3)
    assert found == [whole(network, prompt, 7) for prompt in asked]


def test_a_stop_ends_its_own_answer_only(named: tuple[str, Any]) -> None:
    _, network = named
    asked = prompts(4, 4, 6)
    stops = {whole(network, asked[0], 3)[2]}
    found = generate(network, asked, max_new_tokens=6, stop_ids=stops, batch_size=3)
    assert found == [whole(network, prompt, 6, [*stops]) for prompt in asked]
    assert len(found[0]) <= 2


def test_every_prefix_is_continued_as_by_whole_passes(named: tuple[str, Any]) -> None:
    _, network = named
    sequences = prompts(8, 5)
    found = list(suffix_continuations(network, sequences, batch_size=2))
    assert found == [
        [whole(network, sequence[:i], len(sequence) - i) for i in range(1, len(sequence))]
        for sequence in sequences
    ]


def test_a_row_of_states_takes_the_same_memory_whatever_its_length() -> None:
    network = random_network("mamba")
    taken = states_bytes(network, columns=10)
    assert taken == states_bytes(network, columns=1000) > 0
    assert rows_at_once(network, columns=1000, at_most=64, budget=5 * taken) == 5


def test_rows_that_are_read_whole_are_bounded_by_their_tokens() -> None:
    network = random_network("rwkv")
    assert rows_at_once(network, columns=1024, at_most=64) == 4
