"""Other labels in place of the true ones: how they are drawn, and losses on them by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hand_logits import one_step, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import (
    IGNORED,
    adversarial_label_loss,
    adversarial_labels,
    random_label_loss,
    random_labels,
)


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
