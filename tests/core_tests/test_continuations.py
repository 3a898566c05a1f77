"""Greedy decoding: against the library's own, against one forward pass per token, and a known answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from core.metrics.memorization import extraction_likelihood
from core.model import columns
from core.model.columns import column_bytes
from core.model.decoding import generate, rows_at_once, suffix_continuations

VOCABULARY = 23
POSITIONS = 28


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
        )
    )


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def gpt_neo() -> Any:
    """Learned positions, and a layer whose window is shorter than the sequences."""
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=5,
            max_position_embeddings=POSITIONS,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def gemma3() -> Any:
    """Layers with a sliding window beside full ones, and rotary positions of two kinds."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    "llama": llama,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gemma3": gemma3,
}


def random_network(architecture: str, *, seed: int = 0) -> Any:
    """A network whose choices depend on all it may see: random weights, larger than at a usual start."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[architecture]().eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, 0.35)
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    return network


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def network(request: pytest.FixtureRequest) -> Any:
    return random_network(request.param)


def token_by_token(
    network: Any, prompt: Sequence[int], count: int, stops: Sequence[int] = ()
) -> list[int]:
    """Greedy tokens from one whole forward pass each: no cache, no padding."""
    ids = list(prompt)
    for _ in range(count):
        token = int(network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def library_generate(network: Any, prompt: Sequence[int], length: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    found = network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_length=length, do_sample=False
    )
    row: list[int] = found[0, len(prompt) :].tolist()
    return row


def random_prompts(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def half_known(network: Any, seed: int, lengths: Sequence[int]) -> list[list[int]]:
    """Sequences that the network continues itself in places: its own choices, some of them replaced."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in lengths:
        row = torch.randint(0, VOCABULARY, (2,), generator=generator).tolist()
        while len(row) < n:
            token = token_by_token(network, row, 1)[0]
            if float(torch.rand((), generator=generator)) < 0.25:
                token = int(torch.randint(0, VOCABULARY, (), generator=generator))
            row.append(token)
        rows.append(row)
    return rows


def counting_network(size: int) -> Any:
    """A Llama that says ``a + 1`` after ``a``, modulo its vocabulary, whatever came before."""
    width = size + size % 2
    network: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    )
    network.eval().requires_grad_(False)
    layer = network.model.layers[0]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    network.model.embed_tokens.weight.copy_(torch.eye(size, width))
    network.lm_head.weight.copy_(torch.eye(size, width).roll(1, dims=0))  # row v answers v - 1
    return network


# A known answer


def test_a_counting_model_counts_on() -> None:
    network = counting_network(7)
    found = generate(network, [[3], [0, 0, 5]], max_new_tokens=5, stop_ids=(), batch_size=8)
    assert found == [[4, 5, 6, 0, 1], [6, 0, 1, 2, 3]]


def test_a_counting_model_stops_before_a_stop() -> None:
    network = counting_network(7)
    prompts = [[3], [0, 0, 5], [1], [2, 6]]
    found = generate(network, prompts, max_new_tokens=4, stop_ids={6, 2}, batch_size=8)
    assert found == [[4, 5], [], [], [0, 1]]


def test_the_continuations_of_a_counting_model_are_known() -> None:
    sequence = [0, 1, 2, 5, 6]
    (found,) = suffix_continuations(counting_network(7), [sequence], batch_size=8)
    assert found == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [6]]
    assert extraction_likelihood(found, sequence, n=1) == pytest.approx(
        (2 / 4 + 1 / 3 + 0 / 2 + 1) / 4
    )
    assert extraction_likelihood(found, sequence, n=2) == pytest.approx((1 / 3 + 0 + 0) / 3)


def test_what_a_model_knows_by_heart_has_likelihood_one_also_beyond_an_end_of_text() -> None:
    network = counting_network(7)
    network.config.eos_token_id = 3
    network.generation_config.eos_token_id = 3
    sequence = [1, 2, 3, 4, 5, 6, 0, 1, 2]
    (found,) = suffix_continuations(network, [sequence], batch_size=8)
    assert found == [sequence[i:] for i in range(1, len(sequence))]
    assert extraction_likelihood(found, sequence, n=4) == 1.0


# Against the library and against one pass per token


def test_cached_and_padded_answers_are_those_of_one_forward_pass_per_token(network: Any) -> None:
    prompts = random_prompts(1, [1, 12, 3, 7, 3, 16])
    found = generate(network, prompts, max_new_tokens=10, stop_ids=(), batch_size=4)
    assert found == [token_by_token(network, p, 10) for p in prompts]
    assert len({tuple(row) for row in found}) > 3  # they do differ


def test_answers_are_those_of_the_library(network: Any) -> None:
    prompts = random_prompts(2, [2, 11, 5])
    found = generate(network, prompts, max_new_tokens=9, stop_ids=(), batch_size=3)
    assert found == [library_generate(network, p, len(p) + 9) for p in prompts]


def test_rows_that_stop_leave_the_others_alone(network: Any) -> None:
    prompts = random_prompts(3, [4, 9, 1, 14, 6, 6])
    stops = sorted({row[2] for row in (token_by_token(network, p, 4) for p in prompts[:3])})
    found = generate(network, prompts, max_new_tokens=12, stop_ids=stops, batch_size=6)
    assert found == [token_by_token(network, p, 12, stops) for p in prompts]
    assert len({len(row) for row in found}) > 1


def test_suffixes_are_those_of_one_library_run_for_each_prefix(network: Any) -> None:
    sequences = half_known(network, 4, [16, 9, 22])
    found = list(suffix_continuations(network, sequences, batch_size=5))
    for sequence, rows in zip(sequences, found, strict=True):
        assert rows == [
            library_generate(network, sequence[:i], len(sequence)) for i in range(1, len(sequence))
        ]


def test_sequences_as_long_as_the_model_has_positions_are_decoded(network: Any) -> None:
    sequences = random_prompts(5, [POSITIONS, POSITIONS - 3])
    found = list(suffix_continuations(network, sequences, batch_size=64))
    for sequence, rows in zip(sequences, found, strict=True):
        for i in (1, 2, len(sequence) // 2, len(sequence) - 1):
            assert rows[i - 1] == token_by_token(network, sequence[:i], len(sequence) - i)


def test_likelihood_is_that_of_a_loop_over_the_library(network: Any) -> None:
    n, sequences = 2, half_known(network, 6, [18, 13])
    found = suffix_continuations(network, sequences, batch_size=16, min_length=n)
    for sequence, rows in zip(sequences, found, strict=True):
        total = 0.0
        for i in range(1, len(sequence) - n + 1):
            suffix, row = sequence[i:], library_generate(network, sequence[:i], len(sequence))
            known = {tuple(suffix[k : k + n]) for k in range(len(suffix) - n + 1)}
            grams = [tuple(row[k : k + n]) for k in range(len(row) - n + 1)]
            total += sum(g in known for g in grams) / len(grams)
        likelihood = extraction_likelihood(rows, sequence, n=n)
        assert likelihood == pytest.approx(total / (len(sequence) - n))
        assert 0.0 < likelihood < 1.0


# Rows that fit


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(llama, 2 * 2 * 8 * 2 * 4, id="llama"),  # grouped: half as many heads
        pytest.param(gpt2, 2 * 4 * 8 * 2 * 4, id="gpt2"),
        pytest.param(lambda: llama().to(torch.bfloat16), 2 * 2 * 8 * 2 * 2, id="llama-bf16"),
    ],
)
def test_a_token_s_keys_and_values_by_hand(make: Callable[[], Any], expected: int) -> None:
    assert column_bytes(make().eval()) == expected  # layers x heads x head x 2 x bytes


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        pytest.param(3 * 256 * 20 * 5, 5, id="just-five"),
        pytest.param(3 * 256 * 20 * 5 - 1, 4, id="not-quite-five"),
        pytest.param(1, 1, id="one-at-least"),
        pytest.param(1 << 40, 64, id="no-more-than-asked-for"),
        pytest.param(None, 64, id="what-is-free-here"),
    ],
)
def test_rows_that_fit_into_memory_by_hand(budget: int | None, expected: int) -> None:
    network = llama().eval()
    assert rows_at_once(network, columns=20, at_most=64, budget=budget) == expected


def test_the_bound_changes_no_continuation_and_bounds_what_is_kept(network: Any) -> None:
    sequences = half_known(network, 8, [16, 9, 22, 13, 7])
    widest, found = [], []
    for rows in (64, 3, 1):
        budget = rows * 3 * 22 * column_bytes(network)
        size = rows_at_once(network, columns=22, at_most=64, budget=budget)
        assert size == rows
        seen: list[int] = []
        hook = network.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len(kwargs["input_ids"])),
            with_kwargs=True,
        )
        found.append(list(suffix_continuations(network, sequences, batch_size=size)))
        hook.remove()
        widest.append(max(seen))
    assert found[0] == found[1] == found[2]
    assert widest[0] > 3
    assert widest[1:] == [3, 1]


# What must not matter


@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(2, 16), min_size=1, max_size=5),
    batch_size=st.integers(1, 9),
    architecture=st.sampled_from(list(ARCHITECTURES)),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
def test_batches_and_their_order_change_nothing(
    seed: int, lengths: list[int], batch_size: int, architecture: str, data: st.DataObject
) -> None:
    network = random_network(architecture)
    sequences = random_prompts(seed, lengths)
    order = data.draw(st.permutations(range(len(sequences))))
    one_by_one = [
        row for s in sequences for row in suffix_continuations(network, [s], batch_size=1)
    ]
    turned = [sequences[i] for i in order]
    together = list(suffix_continuations(network, turned, batch_size=batch_size))
    assert together == [one_by_one[i] for i in order]

    def answers(prompts: list[list[int]], size: int) -> list[list[int]]:
        return generate(network, prompts, max_new_tokens=6, stop_ids=(1, 2), batch_size=size)

    alone = [answers([s], 1)[0] for s in sequences]
    assert answers(turned, batch_size) == [alone[i] for i in order]


@pytest.mark.parametrize("min_length", [1, 2, 5, 11, 12, 30])
def test_short_suffixes_are_left_out_and_change_no_other(network: Any, min_length: int) -> None:
    sequences = half_known(network, 7, [12, 5])
    everything = list(suffix_continuations(network, sequences, batch_size=8))
    found = list(suffix_continuations(network, sequences, batch_size=8, min_length=min_length))
    assert found == [
        rows[: max(0, len(s) - min_length)] for s, rows in zip(sequences, everything, strict=True)
    ]


def test_forward_passes_over_few_prompts_at_a_time_change_nothing(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = random_prompts(8, [9, 2, 14, 5])
    found = list(suffix_continuations(network, sequences, batch_size=4))
    monkeypatch.setattr(columns, "PREFILL_TOKENS", 20)
    assert list(suffix_continuations(network, sequences, batch_size=4)) == found


def test_bf16_chooses_what_is_best_in_fp32_up_to_its_rounding(tiny_model: Path) -> None:
    texts = [list(range(k, k + 12)) for k in (3, 40, 90)]
    narrow = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    found = generate(narrow, texts, max_new_tokens=8, stop_ids=(), batch_size=3)
    ids = torch.tensor([text + row for text, row in zip(texts, found, strict=True)])
    wide = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        exact, rounded = (
            wide(input_ids=ids).logits[:, 11:-1],
            narrow(input_ids=ids).logits[:, 11:-1],
        )
    rounding = float((exact - rounded.float()).abs().max())
    chosen = exact.gather(-1, ids[:, 12:, None]).squeeze(-1)
    assert float((exact.max(dim=-1).values - chosen).max()) <= 3 * rounding
    assert rounding < 0.1 * float(exact.std())  # so that the bound says something


def test_counting_is_the_same_in_bf16() -> None:
    narrow = counting_network(7).to(torch.bfloat16)
    sequence = [0, 1, 2, 5, 6]
    assert list(suffix_continuations(narrow, [sequence], batch_size=2)) == [
        [[1, 2, 3, 4], [2, 3, 4], [3, 4], [6]]
    ]


def test_weights_get_no_gradient_and_can_still_be_trained() -> None:
    network = random_network("llama").requires_grad_()
    generate(network, [[1, 2, 3]], max_new_tokens=3, stop_ids=(), batch_size=1)
    network(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert network.model.embed_tokens.weight.grad is not None


# Refusals


def test_a_network_in_training_mode_is_refused() -> None:
    network = random_network("llama").train()
    with pytest.raises(ValueError, match="needs evaluation mode"):
        generate(network, [[1]], max_new_tokens=1, stop_ids=(), batch_size=1)
    with pytest.raises(ValueError, match="needs evaluation mode"):
        suffix_continuations(network, [[1, 2]], batch_size=1)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 tokens, got 0 in sequence 1"):
        generate(counting_network(7), [[1], []], max_new_tokens=1, stop_ids=(), batch_size=1)


def test_a_sequence_without_a_suffix_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, got 1 in sequence 0"):
        suffix_continuations(counting_network(7), [[1]], batch_size=1)


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
def test_numbers_that_are_not_positive_are_refused(name: str) -> None:
    numbers = {"max_new_tokens": 1, "batch_size": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        generate(counting_network(7), [[1]], stop_ids=(), **numbers)


def test_a_minimal_length_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="min_length must be at least 1, got 0"):
        suffix_continuations(counting_network(7), [[1, 2]], batch_size=1, min_length=0)
