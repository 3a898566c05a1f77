"""Losses on whole distributions by hand: KL, UNDIAL, CEU and PDU."""

import math

import numpy as np
import pytest
import torch
from hand_logits import gradient, log_probs, one_step, random_batch

from core.losses import (
    IGNORED,
    ceu_loss,
    counted_tokens,
    dpo_loss,
    dual_update,
    kl_loss,
    npo_loss,
    pdu_loss,
    sequence_nll,
    undial_loss,
)

# KL


def test_kl_is_from_the_reference_to_the_model() -> None:
    now, labels = one_step([0.5, 0.5], answer=0)
    reference = log_probs([0.75, 0.25])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_loss(now, reference, labels).item() == pytest.approx(forward, abs=1e-6)
    assert kl_loss(reference, now, labels).item() == pytest.approx(backward, abs=1e-6)


def test_kl_of_a_model_with_itself_is_zero_with_zero_gradient() -> None:
    logits, labels = random_batch()
    loss = kl_loss(logits.requires_grad_(), logits, labels)
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    still = gradient(loss, logits)
    torch.testing.assert_close(still, torch.zeros_like(still), rtol=0, atol=1e-7)


def test_no_gradient_flows_into_the_reference() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    reference = torch.zeros_like(logits).requires_grad_()
    before = sequence_nll(reference, labels)
    for loss in (
        kl_loss(logits, reference, labels),
        undial_loss(logits, reference, labels, beta=1.0),
        npo_loss(logits, labels, before, beta=1.0),
        dpo_loss(logits, labels, before, logits, labels, before, beta=1.0),
    ):
        loss.backward(retain_graph=True)
        assert reference.grad is None


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 1), (1, 3, 6)])
def test_a_reference_of_another_shape_is_refused(shape: tuple[int, int, int]) -> None:
    logits, labels = torch.zeros(1, 3, 5), torch.zeros(1, 3, dtype=torch.long)
    message = r"logits and reference logits must agree, got \(1, 3, 5\) and "
    with pytest.raises(ValueError, match=message):
        kl_loss(logits, torch.zeros(shape), labels)
    with pytest.raises(ValueError, match=message):
        undial_loss(logits, torch.zeros(shape), labels, beta=1.0)


# Distributions


def test_undial_lowers_the_true_tokens_logit_by_beta() -> None:
    reference, labels = one_step([0.5, 0.25, 0.25], answer=0)
    logits = log_probs([0.2, 0.3, 0.5])
    wanted = np.array([0.5 / 2, 0.25, 0.25]) / 0.75  # beta = log 2 halves it
    expected = -float(wanted @ np.log([0.2, 0.3, 0.5]))
    found = undial_loss(logits, reference, labels, beta=math.log(2)).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_undial_is_least_when_the_model_has_its_target() -> None:
    reference, labels = random_batch()
    target = reference.clone()
    rows, places = counted_tokens(labels).nonzero().unbind(-1)
    target[rows, places, labels[rows, places + 1]] -= 4.0
    still = gradient(undial_loss(target.requires_grad_(), reference, labels, beta=4.0), target)
    torch.testing.assert_close(still, torch.zeros_like(still), rtol=0, atol=1e-7)


def test_cross_entropy_unlearning_by_hand() -> None:
    logits, labels = one_step([0.5, 0.375, 0.125], answer=0)
    found = ceu_loss(logits.requires_grad_(), labels, ignore_first_tokens=0)
    expected = -(0.75 * math.log(0.375) + 0.25 * math.log(0.125))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    by_hand = torch.tensor([0.5, -0.375, -0.125])  # p, and -p(v) p / (1 - p)
    torch.testing.assert_close(gradient(found, logits)[0, 0], by_hand)


def test_cross_entropy_unlearning_stays_finite_and_pushes_when_the_model_is_certain() -> None:
    logits, labels = torch.zeros(1, 2, 3), torch.tensor([[IGNORED, 0]])
    logits[0, 0, 0] = 200.0
    found = ceu_loss(logits.requires_grad_(), labels, ignore_first_tokens=0)
    assert found.item() == pytest.approx(200.0, rel=1e-6)
    torch.testing.assert_close(gradient(found, logits)[0, 0], torch.tensor([1.0, -0.5, -0.5]))


def test_leaving_one_token_alone_leaves_out_a_prediction_only_after_a_prompt() -> None:
    logits, _ = random_batch(n_rows=1)
    no_prompt = torch.full((1, 6), 2)
    prompt = no_prompt.clone()
    prompt[:, :2] = IGNORED
    assert (
        ceu_loss(logits, no_prompt, ignore_first_tokens=1).item()
        == ceu_loss(logits, no_prompt, ignore_first_tokens=0).item()
    )
    shorter = prompt.clone()
    shorter[:, 2] = IGNORED
    assert (
        ceu_loss(logits, prompt, ignore_first_tokens=1).item()
        == ceu_loss(logits, shorter, ignore_first_tokens=0).item()
    )


def test_a_distribution_without_its_only_token_is_refused() -> None:
    labels = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="without the true token needs V >= 2, got V=1"):
        ceu_loss(torch.zeros(1, 2, 1), labels, ignore_first_tokens=0)


def test_primal_dual_unlearning_squares_the_largest_logit_above_the_mean() -> None:
    logits = torch.tensor([[[1.0, 2.0, 6.0], [0.0, 3.0, 0.0], [9.0, 0.0, 0.0]]])
    labels = torch.tensor([[IGNORED, 0, 2]])
    assert pdu_loss(logits, labels).item() == pytest.approx((3.0**2 + 2.0**2) / 2)
    flat = torch.full((1, 3, 3), 7.0)
    assert pdu_loss(flat, labels).item() == 0.0


def test_primal_dual_unlearning_knows_no_true_token() -> None:
    logits, labels = random_batch()
    other = labels.where(labels == IGNORED, (labels + 1) % 7)
    assert pdu_loss(logits, labels).item() == pdu_loss(logits, other).item()


@pytest.mark.parametrize(
    ("weight", "retain_loss", "expected"),
    [
        pytest.param(1.0, 0.5, 2.0, id="grows-above-the-limit"),
        pytest.param(1.0, 0.3, 1.0, id="stays-at-the-limit"),
        pytest.param(1.0, 0.2, 0.5, id="falls-below"),
        pytest.param(0.2, 0.0, 0.0, id="never-negative"),
        pytest.param(0.0, 0.4, 0.5, id="comes-back"),
    ],
)
def test_the_dual_variable(weight: float, retain_loss: float, expected: float) -> None:
    found = dual_update(weight, retain_loss, limit=0.3, step=5.0)
    assert found == pytest.approx(expected)


def test_a_dual_step_of_zero_keeps_the_weight() -> None:
    assert dual_update(0.7, 9.0, limit=0.3, step=0.0) == 0.7
