"""Membership scores: by hand, against naive loops, with one orientation, and blind to what does not count."""

import math
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import IGNORED
from core.metrics.privacy import (
    auc,
    grad_norm_score,
    loss_score,
    min_k,
    min_k_plus_plus,
    privleak,
    reference_score,
    zlib_score,
)

Score = Callable[[Tensor, Tensor], Tensor]

SCORES: Mapping[str, Score] = {
    "loss": loss_score,
    "min_k": min_k,
    "min_k_plus_plus": min_k_plus_plus,
}

each_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())


def predicting(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Logits and labels of rows whose counted tokens have these probabilities; token 0 is always the answer."""
    length = max(len(row) for row in rows)
    logits = torch.zeros(len(rows), length + 1, 2)
    labels = torch.full((len(rows), length + 1), IGNORED)
    for b, row in enumerate(rows):
        for t, p in enumerate(row):
            logits[b, t] = torch.tensor([p, 1.0 - p]).log()
            labels[b, t + 1] = 0
    return logits, labels


# By hand


def test_the_loss_score_is_the_mean_of_each_row_alone() -> None:
    logits, labels = predicting([[0.5, 0.5, 0.5, 0.5], [0.25]])
    torch.testing.assert_close(loss_score(logits, labels), torch.tensor([math.log(2), math.log(4)]))


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        pytest.param(0.1, 4.0, id="less-than-one-token-counts-one"),
        pytest.param(0.25, 4.0, id="one-of-four"),
        pytest.param(0.5, 3.5, id="two-of-four"),
        pytest.param(0.74, 3.5, id="rounded-down"),
        pytest.param(1.0, 2.5, id="all"),
    ],
)
def test_min_k_averages_the_least_likely_tokens(k: float, expected: float) -> None:
    logits, labels = predicting([[1 / 2, 1 / 16, 1 / 4, 1 / 8]])
    bits = min_k(logits, labels, k=k).item() / math.log(2)
    assert bits == pytest.approx(expected, abs=1e-5)


def test_k_counts_each_rows_own_tokens() -> None:
    logits, labels = predicting([[1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 2], [1 / 4, 1 / 2], [1 / 8]])
    bits = min_k(logits, labels, k=0.4) / math.log(2)  # 2 of 5, 1 of 2, 1 of 1
    torch.testing.assert_close(bits, torch.tensor([3.5, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        pytest.param(0, -1.0, id="likelier-than-a-draw"),
        pytest.param(1, 1.0, id="less-likely-than-a-draw"),
    ],
)
def test_min_k_plus_plus_counts_standard_deviations(token: int, expected: float) -> None:
    # mean of log2 p is -1.5 and its standard deviation 0.5
    logits = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]]).log()
    labels = torch.tensor([[IGNORED, token]])
    assert min_k_plus_plus(logits, labels).item() == pytest.approx(expected, abs=1e-5)


def test_a_position_that_is_equally_unsure_of_all_tokens_has_no_say() -> None:
    logits, labels = torch.zeros(1, 4, 7), torch.tensor([[IGNORED, 3, 0, 6]])
    assert min_k_plus_plus(logits, labels, k=1.0).item() == pytest.approx(0.0, abs=1e-3)


def test_zlib_divides_by_the_compressed_bytes_of_the_text() -> None:
    texts = ["abc " * 50, "Quebec, 1999: the 7th novel", "caf\u00e9"]
    found = zlib_score(torch.tensor([2.0, 3.0, 0.0]), texts)
    n_bytes = [len(zlib.compress(text.encode())) for text in texts]
    torch.testing.assert_close(found, torch.tensor([2.0 / n_bytes[0], 3.0 / n_bytes[1], 0.0]))
    assert n_bytes[0] < n_bytes[1] < len(texts[0])


def test_the_reference_score_is_the_difference() -> None:
    found = reference_score(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.5]))
    torch.testing.assert_close(found, torch.tensor([1.0, -1.5]))


@pytest.mark.parametrize(
    ("p", "expected"),
    [pytest.param(2.0, (5.0 + 2.0) / 2, id="2"), pytest.param(1.0, (7.0 + 4.0) / 2, id="1")],
)
def test_the_gradient_norm_is_a_mean_over_tensors(p: float, expected: float) -> None:
    gradients = [torch.tensor([3.0, -4.0]), torch.ones(2, 2)]
    assert grad_norm_score(gradients, p=p).item() == pytest.approx(expected)
    whole = torch.cat([g.flatten() for g in gradients]).norm(p)
    assert abs(grad_norm_score(gradients, p=p).item() - whole.item()) > 1.0


@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [
        pytest.param([1.0, 2.0], [3.0, 4.0], 1.0, id="memorised"),
        pytest.param([3.0, 4.0], [1.0, 2.0], 0.0, id="over-unlearned"),
        pytest.param([1.0, 2.0], [1.0, 2.0], 0.5, id="retrained"),
        pytest.param([5.0, 5.0], [5.0], 0.5, id="all-tied"),
        pytest.param([1.0, 3.0], [2.0], 0.5, id="around"),
        pytest.param([1.0, 2.0, 3.0], [2.0, 4.0], 4.5 / 6, id="one-tie"),
        pytest.param([-math.inf], [math.inf], 1.0, id="infinite"),
    ],
)
def test_auc_is_one_when_the_forget_set_looks_familiar(
    forget: list[float], holdout: list[float], expected: float
) -> None:
    assert auc(torch.tensor(forget), torch.tensor(holdout)) == expected


@pytest.mark.parametrize(
    ("unlearned", "retain", "expected"),
    [
        pytest.param(0.5, 0.5, 0.0, id="as-retrained"),
        pytest.param(1.0, 0.5, -100.0, id="not-unlearned"),
        pytest.param(0.0, 0.5, 100.0, id="over-unlearned"),
        pytest.param(0.7, 0.6, -25.0, id="relative-to-the-retain-model"),
        pytest.param(0.0, 0.75, 300.0, id="unbounded-above"),
    ],
)
def test_privleak_is_negative_when_too_little_is_unlearned(
    unlearned: float, retain: float, expected: float
) -> None:
    assert privleak(unlearned, retain) == pytest.approx(expected)


def test_privleak_compares_with_a_coin_unless_told_otherwise() -> None:
    assert privleak(0.75) == privleak(0.75, 0.5) == -50.0


def test_a_memorised_row_has_the_lower_score_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 13, 11, generator=generator)
    labels = torch.randint(0, 11, (8, 13), generator=generator)
    memorised = logits.clone()
    memorised[:, :-1].scatter_(-1, labels[:, 1:].unsqueeze(-1), 9.0)
    for name, score in SCORES.items():
        known, unseen = score(memorised, labels), score(logits, labels)
        assert bool((known < unseen).all()), name
        assert auc(known, unseen) == 1.0, name
    known, unseen = loss_score(memorised, labels), loss_score(logits, labels)
    texts = ["one and the same text"] * 8
    assert auc(zlib_score(known, texts), zlib_score(unseen, texts)) == 1.0
    same = torch.full((8,), 2.0)
    assert auc(reference_score(known, same), reference_score(unseen, same)) == 1.0


def test_the_gradient_of_a_memorised_row_is_smaller() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    x, target = torch.randn(1, 4), torch.tensor([1])

    def score() -> float:
        loss = torch.nn.functional.cross_entropy(layer(x), target)
        return grad_norm_score(torch.autograd.grad(loss, list(layer.parameters()))).item()

    before = score()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), target).backward()
        optimizer.step()
    assert score() < 0.1 * before


# Against naive loops


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits and labels of any mask with a counted token in each row."""
    n_rows, n_tokens, size = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 9)),
        draw(st.integers(2, 9)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    scale = draw(st.sampled_from([0.3, 1.0, 5.0]))
    logits = scale * torch.randn(n_rows, n_tokens, size, generator=generator)
    labels = torch.randint(0, size, (n_rows, n_tokens), generator=generator)
    mask = draw(st.lists(st.booleans(), min_size=labels.numel(), max_size=labels.numel()))
    masked = labels.masked_fill(~torch.tensor(mask).view_as(labels), IGNORED)
    empty = (masked[:, 1:] == IGNORED).all(dim=1)
    masked[empty, -1] = labels[empty, -1]
    return logits, masked


shares = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])


def naive(logits: Tensor, labels: Tensor, *, k: float, standardised: bool) -> list[float]:
    """The definitions in float64, one token at a time."""
    found = []
    for x, target in zip(logits.double().numpy(), labels.tolist(), strict=True):
        values = []
        for t in range(len(target) - 1):
            if target[t + 1] == IGNORED:
                continue
            log_p = x[t] - np.log(np.exp(x[t]).sum())
            value = log_p[target[t + 1]]
            if standardised:
                p = np.exp(log_p)
                mean = (p * log_p).sum()
                variance = (p * log_p**2).sum() - mean**2
                value = (value - mean) / math.sqrt(max(variance, 1e-6))
            values.append(float(value))
        n_lowest = max(1, int(k * len(values)))
        found.append(-sum(sorted(values)[:n_lowest]) / n_lowest)
    return found


@given(batch=batches(), k=shares)
@settings(deadline=None, max_examples=60)
def test_scores_equal_a_float64_loop_over_tokens(batch: tuple[Tensor, Tensor], k: float) -> None:
    logits, labels = batch
    for found, expected in (
        (loss_score(logits, labels), naive(logits, labels, k=1.0, standardised=False)),
        (min_k(logits, labels, k=k), naive(logits, labels, k=k, standardised=False)),
        (min_k_plus_plus(logits, labels, k=k), naive(logits, labels, k=k, standardised=True)),
    ):
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(batch=batches())
@settings(deadline=None, max_examples=30)
def test_min_k_of_all_tokens_is_the_loss_score(batch: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(min_k(*batch, k=1.0), loss_score(*batch))


@given(batch=batches())
@settings(deadline=None, max_examples=30)
def test_a_larger_share_of_tokens_never_raises_the_score(batch: tuple[Tensor, Tensor]) -> None:
    for score in (min_k, min_k_plus_plus):
        by_share = torch.stack([score(*batch, k=k) for k in (0.1, 0.3, 0.5, 0.8, 1.0)])
        assert bool((by_share.diff(dim=0) <= 1e-5 * (1 + by_share[1:].abs())).all())


@given(batch=batches(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_row_has_the_same_score_in_every_order_and_alone(
    batch: tuple[Tensor, Tensor], seed: int
) -> None:
    logits, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for score in SCORES.values():
        whole = score(logits, labels)
        torch.testing.assert_close(score(logits[order], labels[order]), whole[order])
        torch.testing.assert_close(score(logits[-1:], labels[-1:]), whole[-1:])


@given(batch=batches(), n_padding=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_padding_changes_nothing_whatever_its_logits(
    batch: tuple[Tensor, Tensor], n_padding: int
) -> None:
    logits, labels = batch
    n_rows, _, size = logits.shape
    generator = torch.Generator().manual_seed(0)
    filler = 100.0 * torch.randn(n_rows, n_padding, size, generator=generator)
    padded = torch.cat([logits, filler], dim=1)
    ignored = torch.cat([labels, torch.full((n_rows, n_padding), IGNORED)], dim=1)
    for score in SCORES.values():
        torch.testing.assert_close(score(padded, ignored), score(logits, labels), rtol=0, atol=0)


@given(batch=batches(), shift=st.floats(-20, 20))
@settings(deadline=None, max_examples=30)
def test_adding_a_constant_to_all_logits_of_a_position_changes_nothing(
    batch: tuple[Tensor, Tensor], shift: float
) -> None:
    logits, labels = batch
    moved = logits + shift * torch.arange(1, logits.shape[1] + 1).view(1, -1, 1)
    for score in SCORES.values():
        torch.testing.assert_close(
            score(moved, labels), score(logits, labels), rtol=2e-3, atol=2e-3
        )


scores = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


@given(forget=scores, holdout=scores)
def test_auc_is_the_share_of_pairs_in_order(forget: list[int], holdout: list[int]) -> None:
    wins = sum((h > f) + 0.5 * (h == f) for f in forget for h in holdout)
    found = auc(torch.tensor(forget).float(), torch.tensor(holdout).float())
    assert found == wins / (len(forget) * len(holdout))


@given(forget=scores, holdout=scores)
def test_swapping_the_sets_reflects_auc_at_one_half(forget: list[int], holdout: list[int]) -> None:
    a, b = torch.tensor(forget).float(), torch.tensor(holdout).float()
    assert auc(a, b) == pytest.approx(1.0 - auc(b, a), abs=1e-15)


@given(forget=scores, holdout=scores, seed=st.integers(0, 1000))
def test_auc_depends_only_on_the_order_of_the_scores(
    forget: list[int], holdout: list[int], seed: int
) -> None:
    a, b = torch.tensor(forget).double(), torch.tensor(holdout).double()
    shuffled = a[torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))]
    assert auc(a**3 + a, b**3 + b) == auc(a, b)
    assert auc(a.exp(), b.exp()) == auc(a, b)
    assert auc(-a, -b) == pytest.approx(1.0 - auc(a, b), abs=1e-15)
    assert auc(shuffled, b) == auc(a, b)


def test_auc_of_sets_of_one_distribution_is_about_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    forget, holdout = torch.randn(2, 2000, generator=generator)
    assert auc(forget, holdout) == pytest.approx(0.5, abs=0.03)  # three standard errors


# Precision


@each_score
def test_bf16_logits_are_computed_in_float32(score: Score) -> None:
    generator = torch.Generator().manual_seed(0)
    low = (4.0 * torch.randn(4, 16, 300, generator=generator)).bfloat16()
    labels = torch.randint(0, 300, (4, 16), generator=generator)
    found = score(low, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, score(low.float(), labels), rtol=0, atol=0)


@each_score
def test_logits_of_a_diverged_model_that_are_still_finite_have_finite_scores(score: Score) -> None:
    logits = torch.full((1, 3, 5), -1e4)
    logits[..., 2] = 1e4
    assert bool(torch.isfinite(score(logits, torch.tensor([[0, 1, 2]]))).all())


# Refusals


@each_score
def test_a_row_without_a_counted_token_is_refused_and_not_dropped(score: Score) -> None:
    labels = torch.tensor([[0, 1, 2], [1, IGNORED, IGNORED]])
    with pytest.raises(ValueError, match=r"every row needs a counted token, rows \[1\]"):
        score(torch.zeros(2, 3, 5), labels)


@each_score
def test_shapes_that_disagree_are_refused(score: Score) -> None:
    with pytest.raises(ValueError, match=r"must agree, got \(2, 3, 5\) and \(2, 4\)"):
        score(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))


@pytest.mark.parametrize("k", [0.0, -0.1, 1.5, 40.0, math.nan])
def test_a_share_outside_the_unit_interval_is_refused(k: float) -> None:
    for score in (min_k, min_k_plus_plus):
        with pytest.raises(ValueError, match=rf"k must lie in \(0, 1\], got {k}"):
            score(*predicting([[0.5]]), k=k)


def test_texts_and_rows_must_be_as_many() -> None:
    with pytest.raises(ValueError, match=r"one text, got nll of shape \(2,\) and 1 texts"):
        zlib_score(torch.zeros(2), ["a"])


def test_a_reference_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \(B,\), got \(2,\) and \(3,\)"):
        reference_score(torch.zeros(2), torch.zeros(3))


def test_a_norm_of_nothing_or_of_no_order_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one gradient, got none"):
        grad_norm_score([])
    with pytest.raises(ValueError, match=r"p must be positive, got 0\.0"):
        grad_norm_score([torch.ones(1)], p=0.0)


def test_auc_refuses_empty_sets_and_nan() -> None:
    good = torch.zeros(2)
    with pytest.raises(ValueError, match=r"forget scores must be \(n,\) with n >= 1, got \(0,\)"):
        auc(torch.zeros(0), good)
    with pytest.raises(ValueError, match=r"holdout scores must be \(n,\).*got \(1, 2\)"):
        auc(good, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="holdout scores must be numbers, got 1 NaN of 2"):
        auc(good, torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    ("unlearned", "retain", "message"),
    [
        pytest.param(1.2, 0.5, r"auc_unlearned must lie in \[0, 1\], got 1\.2", id="above-one"),
        pytest.param(0.5, -0.1, r"auc_retain must lie in \[0, 1\], got -0\.1", id="negative"),
        pytest.param(math.nan, 0.5, r"auc_unlearned must lie in \[0, 1\], got nan", id="nan"),
        pytest.param(0.5, 1.0, "auc_retain must be below 1, got 1", id="nothing-left"),
    ],
)
def test_privleak_refuses_what_is_no_auc(unlearned: float, retain: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        privleak(unlearned, retain)
