"""NPO, SimNPO and DPO by hand: closed forms, limits, gradients, and refusals."""

import math

import pytest
import torch
from hand_logits import gradient, one_step, random_batch

from core.losses import (
    IGNORED,
    counted_tokens,
    dpo_loss,
    gradient_ascent_loss,
    npo_loss,
    sequence_nll,
    simnpo_loss,
)


def test_npo_of_the_reference_itself_is_two_log_two_over_beta() -> None:
    logits, labels = random_batch()
    loss = npo_loss(logits, labels, sequence_nll(logits, labels), beta=0.1)
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-6)


def test_npo_by_hand() -> None:
    logits = torch.zeros(1, 3, 4)  # 2 log 4 of a sequence
    labels = torch.tensor([[IGNORED, 1, 2]])
    margin = 2 * math.log(4) - 2.0
    found = npo_loss(logits, labels, torch.tensor([2.0]), beta=0.5).item()
    assert found == pytest.approx(4 * math.log(1 + math.exp(-0.5 * margin)), rel=1e-6)


def test_npo_becomes_ascent_on_summed_cross_entropy_as_beta_vanishes() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    reference = torch.tensor([3.0, 7.0, 1.0])
    found = gradient(npo_loss(logits, labels, reference, beta=1e-5), logits)
    n_tokens, n_rows = int(counted_tokens(labels).sum()), len(labels)
    ascent = gradient(gradient_ascent_loss(logits, labels), logits) * n_tokens / n_rows
    torch.testing.assert_close(found, ascent, rtol=1e-4, atol=1e-6)


def test_npo_leaves_a_sequence_alone_once_it_is_much_less_likely() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    nll = sequence_nll(logits, labels).detach()
    pushed = gradient(npo_loss(logits, labels, nll, beta=1.0), logits).abs().max()
    done = gradient(npo_loss(logits, labels, nll - 20.0, beta=1.0), logits).abs().max()
    assert float(done) < 1e-7 < 0.01 < float(pushed)


def test_simnpo_by_hand() -> None:
    logits = torch.zeros(2, 4, 4)  # log 4 a token, whatever the length
    labels = torch.tensor([[IGNORED, 1, 2, 3], [IGNORED, IGNORED, IGNORED, 2]])
    found = simnpo_loss(logits, labels, beta=2.5, delta=1.0).item()
    assert found == pytest.approx(0.8 * math.log(1 + math.exp(-2.5 * (math.log(4) - 1))), rel=1e-6)


def test_simnpo_divides_by_predicted_tokens_also_when_the_first_has_a_label() -> None:
    logits, _ = random_batch()
    labels = torch.full((3, 6), 2)
    unlabelled = labels.clone()
    unlabelled[:, 0] = IGNORED
    found = simnpo_loss(logits, labels, beta=1.0, delta=0.0)
    assert found.item() == simnpo_loss(logits, unlabelled, beta=1.0, delta=0.0).item()


def test_simnpo_of_a_certain_model_is_two_log_two_over_beta() -> None:
    found = simnpo_loss(*one_step([1.0, 0.0], answer=0), beta=4.0, delta=0.0).item()
    assert found == pytest.approx(0.5 * math.log(2), rel=1e-6)


def test_dpo_of_the_reference_itself_is_two_log_two_over_beta() -> None:
    logits, labels = random_batch()
    nll = sequence_nll(logits, labels)
    alternative, other = logits.flip(0)[:, :5], torch.full((3, 5), 4)
    other_nll = sequence_nll(alternative, other)
    loss = dpo_loss(logits, labels, nll, alternative, other, other_nll, beta=0.5)
    assert loss.item() == pytest.approx(4 * math.log(2), rel=1e-6)


def test_dpo_by_hand() -> None:
    logits, labels = torch.zeros(1, 2, 4), torch.tensor([[IGNORED, 1]])
    alternative, other = torch.zeros(1, 3, 4), torch.tensor([[IGNORED, 1, 2]])
    loss = dpo_loss(
        logits, labels, torch.tensor([1.0]), alternative, other, torch.tensor([4.0]), beta=2.0
    )
    margin = (math.log(4) - 1.0) - (2 * math.log(4) - 4.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2.0 * margin)), rel=1e-6)


def test_dpo_lowers_the_answer_and_raises_its_alternative() -> None:
    logits, labels = random_batch()
    alternative = logits.clone().requires_grad_()
    logits.requires_grad_()
    nll = sequence_nll(logits, labels).detach()
    loss = dpo_loss(logits, labels, nll, alternative, labels, nll, beta=1.0)
    lowered, raised = torch.autograd.grad(loss, [logits, alternative])
    torch.testing.assert_close(lowered, -raised)
    n_rows, n_tokens = len(labels), int(counted_tokens(labels).sum())
    ascent = gradient(gradient_ascent_loss(logits, labels), logits) * n_tokens / n_rows
    torch.testing.assert_close(lowered, ascent)  # slope 2 of the loss times 1 / 2 of the sigmoid


def test_dpo_of_a_row_without_alternative_is_refused() -> None:
    logits, labels = random_batch()
    nll = sequence_nll(logits, labels)
    with pytest.raises(ValueError, match="one alternative, got 3 rows and 2 alternatives"):
        dpo_loss(logits, labels, nll, logits[:2], labels[:2], nll[:2], beta=1.0)


def test_a_reference_nll_that_is_not_one_number_a_row_is_refused() -> None:
    logits, labels = random_batch()
    nll = sequence_nll(logits, labels)
    message = r"reference_nll must have one number a row, got \(1,\) for 3 rows"
    with pytest.raises(ValueError, match=message):
        npo_loss(logits, labels, nll[:1], beta=1.0)
    with pytest.raises(ValueError, match=message):
        dpo_loss(logits, labels, nll, logits, labels, nll[:1], beta=1.0)
