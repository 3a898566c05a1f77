"""Alignment, ascent, hinge and weighted ascent by hand: closed forms, gradients, and refusals."""

import math

import pytest
import torch
from hand_logits import gradient, log_probs, one_step, random_batch

from core.losses import (
    IGNORED,
    align,
    counted_positions,
    counted_tokens,
    gradient_ascent_loss,
    inverted_hinge_loss,
    nll_loss,
    satimp_loss,
    sequence_nll,
    token_nll,
    wga_loss,
)

# Alignment


def test_logits_predict_the_next_token() -> None:
    logits = torch.full((1, 3, 4), -30.0)
    logits[0, 0, 2] = logits[0, 1, 3] = 30.0  # position 0 predicts token 2, position 1 token 3
    labels = torch.tensor([[0, 2, 3]])
    assert nll_loss(logits, labels).item() == pytest.approx(0.0, abs=1e-6)
    paired, targets = align(logits, labels)
    assert targets.tolist() == [2, 3]
    torch.testing.assert_close(paired, logits[0, :2])


def test_token_nll_is_row_by_row() -> None:
    logits = torch.cat([log_probs([0.5, 0.5]), log_probs([0.25, 0.75])])
    labels = torch.tensor([[IGNORED, 0], [IGNORED, 0]])
    torch.testing.assert_close(token_nll(logits, labels), torch.tensor([math.log(2), math.log(4)]))


def test_sequence_nll_sums_each_row() -> None:
    logits = torch.zeros(2, 4, 8)  # log 8 a token
    labels = torch.tensor([[1, 2, 3, 4], [IGNORED, IGNORED, 5, IGNORED]])
    torch.testing.assert_close(
        sequence_nll(logits, labels), torch.tensor([3 * math.log(8), math.log(8)])
    )


def test_a_labelled_first_token_has_a_position_but_no_prediction() -> None:
    labels = torch.tensor([[3, IGNORED, 4], [IGNORED, 5, IGNORED]])
    assert counted_positions(labels).tolist() == [[True, False, True], [False, True, False]]
    assert counted_tokens(labels).tolist() == [[False, True], [True, False]]


# Ascent and hinge


@pytest.mark.parametrize(
    ("probs", "nll"),
    [
        pytest.param([1.0, 0.0], 0.0, id="certain"),
        pytest.param([0.5, 0.5], math.log(2), id="coin"),
        pytest.param([0.25] * 4, math.log(4), id="uniform"),
    ],
)
def test_ascent_is_minus_the_cross_entropy(probs: list[float], nll: float) -> None:
    assert nll_loss(*one_step(probs, answer=0)).item() == pytest.approx(nll, abs=1e-6)
    assert gradient_ascent_loss(*one_step(probs, answer=0)).item() == pytest.approx(-nll, abs=1e-6)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        pytest.param([1.0, 0.0, 0.0], 2.0, id="certain-of-answer"),
        pytest.param([0.5, 0.5, 0.0], 1.0, id="ties-with-rival"),
        pytest.param([0.0, 1.0, 0.0], 0.0, id="certain-of-rival"),
        pytest.param([0.2, 0.7, 0.1], 0.5, id="only-the-strongest-rival-counts"),
        pytest.param([0.6, 0.3, 0.1], 1.3, id="ahead-of-rival"),
    ],
)
def test_the_hinge_is_one_plus_answer_minus_rival(probs: list[float], expected: float) -> None:
    found = inverted_hinge_loss(*one_step(probs, answer=0)).item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_hinge_pushes_answer_and_strongest_rival_only_through_the_softmax() -> None:
    logits, labels = one_step([0.6, 0.3, 0.1], answer=0)
    found = gradient(inverted_hinge_loss(logits.requires_grad_(), labels), logits)
    p = torch.tensor([0.6, 0.3, 0.1])
    jacobian_times_signs = p * (torch.tensor([1.0, -1.0, 0.0]) - (0.6 - 0.3))
    torch.testing.assert_close(found[0, 0], jacobian_times_signs)


def test_of_rivals_that_tie_the_first_alone_gets_the_gradient() -> None:
    logits, labels = one_step([0.2, 0.4, 0.4], answer=0)
    found = gradient(inverted_hinge_loss(logits.requires_grad_(), labels), logits)
    p = torch.tensor([0.2, 0.4, 0.4])
    torch.testing.assert_close(found[0, 0], p * (torch.tensor([1.0, -1.0, 0.0]) - (0.2 - 0.4)))


def test_a_hinge_without_a_rival_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a vocabulary of at least 2, got V=1"):
        inverted_hinge_loss(torch.zeros(1, 2, 1), torch.zeros(1, 2, dtype=torch.long))


# Weighted ascent


@pytest.mark.parametrize(
    ("p", "beta", "expected"),
    [
        pytest.param(0.5, 1.0, 0.5 * math.log(0.5), id="coin"),
        pytest.param(0.25, 2.0, 0.0625 * math.log(0.25), id="squared"),
        pytest.param(1.0, 1.0, 0.0, id="certain"),
        pytest.param(math.exp(-2), 0.5, -2 / math.e, id="the-least-value"),
    ],
)
def test_weighted_ascent_is_p_to_the_beta_log_p(p: float, beta: float, expected: float) -> None:
    logits, labels = one_step([p, 1 - p], answer=0)
    assert wga_loss(logits, labels, beta=beta).item() == pytest.approx(expected, abs=1e-6)
    found = satimp_loss(logits, labels, beta1=beta, beta2=0.0).item()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        pytest.param(0.5, 0.25 * 0.5 * math.log(0.5), id="coin"),
        pytest.param(0.8, 0.64 * 0.2 * math.log(0.8), id="likely"),
        pytest.param(1.0, 0.0, id="certain"),
    ],
)
def test_saturation_and_importance_weigh_by_p_and_by_one_minus_p(p: float, expected: float) -> None:
    found = satimp_loss(*one_step([p, 1 - p], answer=0), beta1=2.0, beta2=1.0).item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_weights_without_exponents_are_ascent_to_the_last_bit() -> None:
    logits, labels = random_batch()
    logits.requires_grad_()
    expected = gradient_ascent_loss(logits, labels)
    for found in (
        wga_loss(logits, labels, beta=0.0),
        satimp_loss(logits, labels, beta1=0.0, beta2=0.0),
    ):
        assert found.item() == expected.item()
        torch.testing.assert_close(
            gradient(found, logits),
            gradient(gradient_ascent_loss(logits, labels), logits),
            rtol=0,
            atol=0,
        )


def test_no_gradient_flows_through_the_weights() -> None:
    logits, labels = one_step([0.3, 0.7], answer=0)
    logits.requires_grad_()
    ascent = gradient(gradient_ascent_loss(logits, labels), logits)
    weighted = gradient(wga_loss(logits, labels, beta=2.0), logits)
    torch.testing.assert_close(weighted, 0.09 * ascent)
    both = gradient(satimp_loss(logits, labels, beta1=2.0, beta2=1.0), logits)
    torch.testing.assert_close(both, 0.09 * 0.7 * ascent)
