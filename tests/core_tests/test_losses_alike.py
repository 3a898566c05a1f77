"""All losses alike: blind to what does not count, an average of the right things, precise, and refusing."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import LOSSES, SEQUENCE_LOSSES, TOKEN_LOSSES, Loss, batches, losses_for
from torch import Tensor

from core.losses import IGNORED, counted_tokens

STEEPNESS: Mapping[str, float] = {
    **dict.fromkeys(TOKEN_LOSSES, 2.0),  # the cross-entropy of a token moves by at most twice
    "ceu": 16.0,
    "pdu": 60.0,  # twice (max - mean), of logits up to 16, for max and mean each
    "npo": 60.0,  # slope 2 of a sum of 15 tokens, each moving by at most twice
    "dpo": 120.0,
    "simnpo": 4.0,
}
"""How far a loss can move, over the largest change of a logit, on the batch of the precision test."""

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


# Blind to what does not count


@given(batch=batches(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_order_of_rows_does_not_matter(batch: tuple[Tensor, Tensor], seed: int) -> None:
    logits, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for name, loss in losses_for(labels).items():
        found, expected = loss(logits[order], labels[order]), loss(logits, labels)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5), name


@given(batch=batches(), shift=st.floats(-20, 20))
@settings(deadline=None, max_examples=30)
def test_adding_a_constant_to_all_logits_of_a_position_changes_nothing(
    batch: tuple[Tensor, Tensor], shift: float
) -> None:
    logits, labels = batch
    moved = logits + shift * torch.arange(1, logits.shape[1] + 1).view(1, -1, 1)
    for name, loss in losses_for(labels).items():
        found, expected = loss(moved, labels).item(), loss(logits, labels).item()
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-3), name


@given(batch=batches(), n_padding=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_padding_changes_nothing_whatever_its_logits(
    batch: tuple[Tensor, Tensor], n_padding: int
) -> None:
    logits, labels = batch
    n_rows, _, size = logits.shape
    filler = torch.full((n_rows, n_padding, size), math.nan)
    filler[:, ::2] = 100.0 * torch.arange(size)
    padded = torch.cat([logits, filler], dim=1)
    ignored = torch.cat([labels, torch.full((n_rows, n_padding), IGNORED)], dim=1)
    for name, loss in losses_for(labels).items():
        assert loss(padded, ignored).item() == loss(logits, labels).item(), name


@given(batch=batches())
@settings(deadline=None, max_examples=30)
def test_the_gradient_is_exactly_zero_on_every_position_that_does_not_count(
    batch: tuple[Tensor, Tensor],
) -> None:
    logits, labels = batch
    silent = torch.ones_like(labels, dtype=torch.bool)
    silent[:, :-1] = ~counted_tokens(labels)
    for name, loss in losses_for(labels).items():
        x = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        assert torch.count_nonzero(gradient[silent]) == 0, name
        assert bool(torch.isfinite(gradient).all()), name


@given(batch=batches())
@settings(deadline=None, max_examples=20)
def test_the_gradient_sums_to_zero_over_the_vocabulary(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    for name, loss in losses_for(labels).items():
        x = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        size = float(gradient.abs().max())
        assert float(gradient.sum(-1).abs().max()) <= 1e-5 * max(size, 1.0), name


# What is averaged over what


def unequal_rows() -> tuple[Tensor, Tensor]:
    """Row 0 counts 8 tokens, row 1 counts 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(2, 9, 5, generator=generator)
    labels = torch.randint(0, 5, (2, 9), generator=generator)
    labels[1, 2:] = IGNORED
    return logits, labels


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_loss_on_tokens_averages_over_tokens_and_not_over_rows(name: str) -> None:
    logits, labels = unequal_rows()
    loss = TOKEN_LOSSES[name]
    long, short = loss(logits[:1], labels[:1]), loss(logits[1:], labels[1:])
    torch.testing.assert_close(loss(logits, labels), (8 * long + short) / 9)
    assert abs(float((long + short) / 2 - loss(logits, labels))) > 1e-3


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_a_loss_on_sequences_averages_over_rows_and_not_over_tokens(name: str) -> None:
    logits, labels = unequal_rows()
    loss = SEQUENCE_LOSSES[name]
    long, short = loss(logits[:1], labels[:1]), loss(logits[1:], labels[1:])
    torch.testing.assert_close(loss(logits, labels), (long + short) / 2)
    assert abs(float((8 * long + short) / 9 - loss(logits, labels))) > 1e-3


# Precision


@each_loss
def test_bf16_logits_are_computed_in_float32(loss: Loss) -> None:
    (name,) = (n for n, other in LOSSES.items() if other is loss)
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(4, 16, 300, generator=generator).clamp(-4, 4)
    labels = torch.randint(0, 300, (4, 16), generator=generator)
    low = logits.bfloat16()
    found = loss(low, labels)
    assert found.dtype == torch.float32
    assert found.item() == loss(low.float(), labels).item()
    rounding = float((low.float() - logits).abs().max())
    assert rounding <= 2.0**-5  # half a step of bf16 below 16
    assert abs(float(found - loss(logits, labels))) <= STEEPNESS[name] * rounding


@each_loss
def test_the_input_is_left_as_it_was(loss: Loss) -> None:
    logits, labels = unequal_rows()
    x, y = logits.clone().requires_grad_(), labels.clone()
    loss(x, y).backward()
    assert torch.equal(x, logits)
    assert torch.equal(y, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_the_backward_pass_keeps_no_more_than_a_distribution_for_each_model(name: str) -> None:
    """With V in the tens of thousands, each ``(N, V)`` kept is as large as the model's own logits."""
    logits = torch.randn(2, 9, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(18).view(2, 9)
    whole = 16 * 1000  # N V
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= whole:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel() // whole
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = LOSSES[name](logits, labels)
    assert loss.requires_grad
    two_distributions = ("kl", "undial", "ceu", "dpo")
    assert sum(kept.values()) <= (2 if name in two_distributions else 1)


# Refusals


@each_loss
def test_shapes_that_disagree_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match="must agree, got "):
        loss(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must agree, got \(3, 5\) and "):
        loss(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))


@each_loss
def test_a_batch_without_a_counted_token_is_refused(loss: Loss) -> None:
    labels = torch.full((2, 3), IGNORED)
    labels[:, 0] = 1  # the first token is never predicted
    with pytest.raises(ValueError, match="no token counts: every label after the first is -100"):
        loss(torch.zeros(2, 3, 5), labels)


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_a_row_without_a_counted_token_is_refused_by_losses_on_sequences(name: str) -> None:
    labels = torch.tensor([[1, 2], [1, IGNORED], [1, 2]])
    with pytest.raises(ValueError, match=r"every row needs a counted token, rows \[1\] "):
        SEQUENCE_LOSSES[name](torch.zeros(3, 2, 5), labels)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.endswith("_labels")])
@pytest.mark.parametrize("label", [5, -1])
def test_a_label_outside_the_vocabulary_is_refused(name: str, label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\) or be -100, got"):
        LOSSES[name](torch.zeros(1, 2, 5), torch.tensor([[0, label]]))
