"""Losses on logits by hand: closed forms, limits, gradients, and refusals of their own."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import (
    IGNORED,
    adversarial_label_loss,
    adversarial_labels,
    align,
    ceu_loss,
    counted_positions,
    counted_tokens,
    dpo_loss,
    dual_update,
    gradient_ascent_loss,
    inverted_hinge_loss,
    kl_loss,
    nll_loss,
    npo_loss,
    pdu_loss,
    random_label_loss,
    random_labels,
    satimp_loss,
    sequence_nll,
    simnpo_loss,
    token_nll,
    undial_loss,
    wga_loss,
)


def log_probs(probs: Sequence[float]) -> Tensor:
    """Logits ``(1, 2, V)`` whose first position predicts with ``probs``."""
    logits = torch.zeros(1, 2, len(probs))
    logits[0, 0] = torch.tensor(probs).clamp_min(1e-30).log()
    return logits


def one_step(probs: Sequence[float], *, answer: int) -> tuple[Tensor, Tensor]:
    return log_probs(probs), torch.tensor([[IGNORED, answer]])


def random_batch(n_rows: int = 3) -> tuple[Tensor, Tensor]:
    """Rows of 6 tokens over 7, the first 1, 2, ... of them without a label."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(n_rows, 6, 7, generator=generator)
    labels = torch.randint(0, 7, (n_rows, 6), generator=generator)
    for b, row in enumerate(labels):
        row[: 1 + b] = IGNORED
    return logits, labels


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


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


# Other labels


def test_other_labels_are_learnt_in_place_of_the_true_ones() -> None:
    logits, labels = one_step([0.5, 0.25, 0.25], answer=0)
    other = torch.tensor([[IGNORED, 2]])
    for loss in (random_label_loss, adversarial_label_loss):
        assert loss(logits, labels, other).item() == pytest.approx(math.log(4))
        assert loss(logits, labels, labels).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [random_label_loss, adversarial_label_loss])
def test_other_labels_that_do_not_fit_are_refused(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    logits, labels = torch.zeros(1, 3, 4), torch.tensor([[IGNORED, 1, 2]])
    with pytest.raises(ValueError, match=r"must have one shape, got \(1, 3\) and \(1, 2\)"):
        loss(logits, labels, labels[:, :2])
    with pytest.raises(ValueError, match="must count the same tokens, got 1 that only one"):
        loss(logits, labels, torch.tensor([[IGNORED, 1, IGNORED]]))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\) or be -100, got 1 to 4"):
        loss(logits, labels, torch.tensor([[IGNORED, 1, 4]]))


@given(seed=st.integers(0, 2**31 - 1), vocabulary=st.integers(1, 300))
@settings(deadline=None, max_examples=30)
def test_random_labels_replace_labelled_tokens_in_the_order_of_numpys_stream(
    seed: int, vocabulary: int
) -> None:
    labels = torch.tensor([[IGNORED, 5, 5, IGNORED], [5, 5, IGNORED, IGNORED]])
    given_labels = labels.clone()
    found = random_labels(labels, vocabulary=vocabulary, seed=seed)
    stream = np.random.RandomState(seed)  # one call a token, as the released code
    drawn = [int(stream.choice(vocabulary)) for _ in range(4)]
    assert found[labels != IGNORED].tolist() == drawn
    assert torch.equal(found == IGNORED, labels == IGNORED)
    assert torch.equal(labels, given_labels)


def test_random_labels_are_uniform_over_the_whole_vocabulary() -> None:
    labels = torch.zeros(1, 20_000, dtype=torch.long)
    counts = random_labels(labels, vocabulary=8, seed=3).flatten().bincount(minlength=8)
    assert len(counts) == 8
    chi_squared = float(((counts - 2500) ** 2 / 2500).sum())
    assert chi_squared < 24.3  # 99.9 % of a chi-squared with 7 degrees of freedom


def test_random_labels_differ_with_the_seed() -> None:
    labels = torch.zeros(1, 50, dtype=torch.long)
    assert not torch.equal(
        random_labels(labels, vocabulary=99, seed=1), random_labels(labels, vocabulary=99, seed=2)
    )


def test_an_adversarial_label_is_the_likeliest_wrong_token_of_the_position_before() -> None:
    logits = torch.tensor([[[0.0, 3.0, 2.0], [5.0, 1.0, 2.0], [9.0, 0.0, 0.0]]])
    assert adversarial_labels(logits, torch.tensor([[0, 1, 2]])).tolist() == [[IGNORED, 2, 0]]
    assert adversarial_labels(logits, torch.tensor([[0, 2, 0]])).tolist() == [[IGNORED, 1, 2]]
    only_last = torch.tensor([[IGNORED, IGNORED, 0]])
    assert adversarial_labels(logits, only_last).tolist() == [[IGNORED, IGNORED, 2]]


def test_adversarial_labels_leave_logits_and_gradient_alone() -> None:
    logits, labels = random_batch()
    before = logits.clone()
    found = adversarial_labels(logits.requires_grad_(), labels)
    assert torch.equal(logits, before)
    assert not found.requires_grad
    counted = labels[:, 1:] != IGNORED
    assert bool((found[:, 1:][counted] != labels[:, 1:][counted]).all())


def test_a_wrong_token_needs_two_to_choose_from() -> None:
    with pytest.raises(ValueError, match="a wrong token needs a vocabulary of at least 2, got V=1"):
        adversarial_labels(torch.zeros(1, 2, 1), torch.zeros(1, 2, dtype=torch.long))


# Preference


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
