"""Rows laid end to end are read as rows alone, forward and backward; what cannot be read so is padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from random_models import token_rows
from torch import Tensor, nn

from core.data.layouts import EndToEnd, Padded
from core.data.tokens import TokenRow
from core.losses import IGNORED, ceu_loss, inverted_hinge_loss, nll_loss
from core.losses.alignment import counted_logits, counted_tokens
from core.model import attention
from core.model.reading import Reader, reader_of
from core.training.checkpointing import checkpointed

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CLOSE: Mapping[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": {},
    "phi": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 4},  # soft caps
    "olmo2": {},
    "mixtral": {"num_local_experts": 2},
}
PADDED: Mapping[str, dict[str, Any]] = {
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "bloom": {"n_layer": 2, "n_head": 2},  # its positions are biases of the scores
    "lfm2": {
        "layer_types": ["conv", "full_attention"]
    },  # convolutions look back over the edge of a row
    "mamba": {"state_size": 4, "num_heads": 2},
}
ROWS = (*token_rows(5, (12, 3, 8, 9)), TokenRow((7, 8), n_context=0))


def network(name: str) -> Any:
    """A tiny model of an architecture, with random weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **(SIZES | {**CLOSE, **PADDED}[name]))
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in made.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    return made


def read(model: nn.Module, reader: Reader) -> tuple[Tensor, Tensor]:
    """Logits of the counted tokens, and the gradient that a loss leaves in the first trained weight."""
    layout = reader.lay(ROWS, CPU)
    logits_NV = reader.read(model, model, layout).logits_NV
    model.zero_grad()
    inverted_hinge_loss(logits_NV, layout.labels_BT).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logits_NV.detach(), torch.cat(gradients)


@pytest.mark.parametrize("name", CLOSE)
def test_rows_end_to_end_give_the_logits_and_gradients_of_padded_rows(name: str) -> None:
    model = network(name)
    reader = reader_of(model, CPU)
    assert reader.end_to_end
    for got, wanted in zip(read(model, reader), read(model, Reader()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_looks_across_rows_reads_them_padded(name: str) -> None:
    assert not reader_of(network(name), CPU).end_to_end


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_long_rows_are_read_by_fused_attention_with_the_same_result(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = network(name), Reader(end_to_end=True)
    wanted = read(model, reader)
    monkeypatch.setattr(attention, "PLAIN_UP_TO", 4)
    for got, expected in zip(read(model, reader), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_checkpointed_blocks_are_computed_again_from_the_same_rows() -> None:
    model, reader = network("llama"), Reader(end_to_end=True)
    logits, wanted = read(model, reader)
    layout = reader.lay(ROWS, CPU)
    with checkpointed(model, again=lambda: attention.attending_by_row(model, layout)):
        again_NV = reader.read(model, model, layout).logits_NV
    model.zero_grad()
    inverted_hinge_loss(again_NV, layout.labels_BT).backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(again_NV, logits)
    torch.testing.assert_close(got, wanted)


def test_afterwards_the_model_attends_as_before() -> None:
    model = network("llama")
    before = model.config._attn_implementation
    read(model, Reader(end_to_end=True))
    assert model.config._attn_implementation == before


def test_both_layouts_have_the_same_labels_and_states() -> None:
    end_to_end, padded = EndToEnd(ROWS, CPU), Padded(ROWS, CPU)
    assert torch.equal(end_to_end.labels_BT, padded.labels_BT)
    ids = end_to_end.padded(end_to_end.inputs["input_ids"].unsqueeze(-1)).squeeze(-1)
    inside = padded.inputs["attention_mask"].bool()
    assert torch.equal(ids[inside], padded.inputs["input_ids"][inside])
    assert end_to_end.inputs["input_ids"].shape == (1, sum(len(row.ids) for row in ROWS))


def test_losses_read_the_logits_of_counted_tokens_alone() -> None:
    labels = Padded(ROWS, CPU).labels_BT
    logits_BTV = torch.randn(*labels.shape, 11).mul(2)
    labels = torch.where(labels == IGNORED, IGNORED, labels % 11)
    logits_NV, _ = counted_logits(logits_BTV, labels)
    assert len(logits_NV) == int(counted_tokens(labels).sum())
    for loss in (nll_loss, inverted_hinge_loss):
        torch.testing.assert_close(loss(logits_NV, labels), loss(logits_BTV, labels))
    some = ceu_loss(logits_NV, labels, ignore_first_tokens=1)
    torch.testing.assert_close(some, ceu_loss(logits_BTV, labels, ignore_first_tokens=1))
    with pytest.raises(ValueError, match="of the counted tokens alone"):
        nll_loss(logits_NV[1:], labels)
