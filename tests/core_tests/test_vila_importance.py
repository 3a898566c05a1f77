"""VILA's importance: the variance of gradients over batches, and the map made of it."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_variance import naive_variance, normal
from torch import Tensor

from core.fisher import diagonal_fisher
from core.vila import centred_fisher, importance_map


def gradients_of(
    gradients: Tensor, counts: Sequence[int]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    return (({"w": g}, n) for g, n in zip(gradients, counts, strict=True))


# Centred Fisher


def test_two_batches_by_hand() -> None:
    first = {"w": torch.tensor([[1.0, -2.0]])}
    second = {"w": torch.tensor([[3.0, -2.0]])}
    found = centred_fisher([(first, 1), (second, 3)])
    # E[g^2] = (1 + 3 * 9) / 4 = 7, E[g] = (1 + 3 * 3) / 4 = 2.5; the second entry never changes
    torch.testing.assert_close(found["w"], torch.tensor([[0.75, 0.0]]))


@given(
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=6),
    n_out=st.integers(1, 4),
    n_in=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_it_equals_the_float64_variance(
    counts: list[int], n_out: int, n_in: int, seed: int
) -> None:
    gradients = normal(len(counts), n_out, n_in, seed=seed)
    found = centred_fisher(gradients_of(gradients, counts))["w"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, naive_variance(gradients, counts).float(), rtol=1e-5, atol=1e-9
    )


@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=6), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_it_is_the_diagonal_fisher_less_the_squared_mean(counts: list[int], seed: int) -> None:
    gradients = normal(len(counts), 3, 2, seed=seed)
    shares = torch.tensor(counts).reshape(-1, 1, 1) / sum(counts)
    uncentred = diagonal_fisher(gradients_of(gradients, counts))["w"]
    found = centred_fisher(gradients_of(gradients, counts))["w"]
    expected = uncentred - (shares * gradients).sum(dim=0).square()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_without_a_mean_give_the_diagonal_fisher() -> None:
    half = normal(3, 4, 2)
    gradients, counts = torch.cat([half, -half]), [1, 5, 2, 1, 5, 2]
    torch.testing.assert_close(
        centred_fisher(gradients_of(gradients, counts))["w"],
        diagonal_fisher(gradients_of(gradients, counts))["w"],
    )


def test_a_large_common_part_neither_counts_nor_costs_digits() -> None:
    small, counts = (1e-3 * normal(4, 5, 3).double()).float(), [3, 1, 4, 1]
    shifted = 1.0 + small
    found = centred_fisher(gradients_of(shifted, counts))["w"]
    torch.testing.assert_close(
        found, naive_variance(shifted, counts).float(), rtol=1e-5, atol=1e-14
    )
    shares = torch.tensor(counts).reshape(-1, 1, 1) / sum(counts)
    low = (shares * shifted.square()).sum(dim=0) - (shares * shifted).sum(dim=0).square()
    assert float((low / found - 1).abs().max()) > 1e-2  # what float32 moments would give


def test_further_passes_over_the_same_batches_change_nothing() -> None:
    gradients, counts = normal(4, 5, 3), [3, 1, 4, 1]
    torch.testing.assert_close(
        centred_fisher(gradients_of(gradients.repeat(10, 1, 1), counts * 10))["w"],
        centred_fisher(gradients_of(gradients, counts))["w"],
    )


def test_a_name_that_a_batch_leaves_out_has_gradient_zero_there() -> None:
    gradient, other = torch.tensor([2.0]), torch.tensor([1.0])
    left_out = centred_fisher([({"w": gradient, "v": other}, 1), ({"v": other}, 3)])
    given_zero = centred_fisher([({"w": gradient}, 1), ({"w": torch.zeros(1)}, 3)])
    assert left_out["w"].tolist() == given_zero["w"].tolist() == [0.75]  # 4 / 4 - (2 / 4)^2


def test_bf16_gradients_are_accumulated_in_full() -> None:
    gradients = torch.cat([torch.full((1000, 2), 0.1), torch.full((1000, 2), 0.3)]).bfloat16()
    found = centred_fisher(gradients_of(gradients, [7] * 2000))["w"]
    expected = (gradients[-1].double() - gradients[0].double()).square() / 4
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_batches", [0, 1])
def test_fewer_than_two_batches_are_refused(n_batches: int) -> None:
    with pytest.raises(ValueError, match=f"needs at least two of them, got {n_batches}"):
        centred_fisher([({"w": torch.ones(1)}, 1)] * n_batches)


@pytest.mark.parametrize("count", [0, -3])
def test_a_batch_that_counts_no_token_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"must count at least one token, got {count}"):
        centred_fisher([({"w": torch.ones(1)}, count)])


# Importance map


def test_the_map_by_hand() -> None:
    fisher_b = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    fisher_a = torch.tensor([[4.0, 0.0, 1.0], [5.0, 6.0, 0.0]])
    expected = torch.tensor([[14.0, 12.0, 1.0], [15.0, 18.0, 0.0]])
    torch.testing.assert_close(importance_map(fisher_b, fisher_a), expected)


@given(
    n_out=st.integers(1, 6),
    n_in=st.integers(1, 6),
    rank=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_the_map_equals_a_loop_and_its_rows_sum_without_it(
    n_out: int, n_in: int, rank: int, seed: int
) -> None:
    fisher_b = normal(n_out, rank, seed=seed).square()
    fisher_a = normal(rank, n_in, seed=seed + 1).square()
    found = importance_map(fisher_b, fisher_a)
    for i in range(n_out):
        for j in range(n_in):
            expected = sum(float(fisher_b[i, k]) * float(fisher_a[k, j]) for k in range(rank))
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found.sum(dim=1), fisher_b @ fisher_a.sum(dim=1))


@pytest.mark.parametrize("shape_a", [(3, 5), (2,)])
def test_factors_of_two_ranks_are_refused(shape_a: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have one rank, got \(4, 2\) and \("):
        importance_map(torch.ones(4, 2), torch.ones(shape_a))
