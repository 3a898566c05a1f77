"""FILA: the best low-rank approximation under row weights, and stable where a row has no importance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.fila import (
    EXACT_BELOW,
    normalise_rows,
    relative_floor,
    relative_importance,
    row_weights,
    weighted_low_rank,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weighted_error(weight: Tensor, approximation: Tensor, rho: Tensor) -> float:
    return float((rho.double().unsqueeze(1) * (weight.double() - approximation.double())).norm())


def optimum(weight: Tensor, rho: Tensor, rank: int) -> float:
    """Eckart-Young: what no matrix of the rank can beat in the weighted norm."""
    s = torch.linalg.svdvals(rho.double().unsqueeze(1) * weight.double())
    return float(s[rank:].square().sum().sqrt())


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """W, positive row weights over several orders of magnitude, and a rank that fits."""
    n_out, n_in = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    seed = draw(st.integers(0, 10**6))
    rho = torch.exp(draw(st.floats(0.0, 2.0)) * normal(n_out, seed=seed + 1))
    return normal(n_out, n_in, seed=seed), rho, draw(st.integers(1, min(n_out, n_in)))


# Importance and row weights


def test_importance_by_hand() -> None:
    forget, retain = torch.tensor([[1.0, 4.0]]), torch.tensor([[0.0, 1.5]])
    found = relative_importance(forget, retain, floor=0.5)
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0]]))
    torch.testing.assert_close(row_weights(found, exponent=0.5), torch.tensor([2.0]))
    torch.testing.assert_close(row_weights(found, exponent=1.0), torch.tensor([4.0]))


def test_the_relative_floor_is_a_share_of_the_mean() -> None:
    assert relative_floor(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 0.01) == pytest.approx(0.03)


def test_row_sums_serve_as_well_as_the_whole_importance() -> None:
    importance = normal(5, 7).square()
    torch.testing.assert_close(
        row_weights(importance, exponent=0.5), row_weights(importance.sum(dim=1), exponent=0.5)
    )


def test_exponent_zero_weights_every_row_alike() -> None:
    assert row_weights(torch.tensor([0.0, 1e-20, 5.0]), exponent=0.0).tolist() == [1.0, 1.0, 1.0]


def test_a_row_without_importance_gets_the_smallest_positive_weight() -> None:
    assert row_weights(torch.tensor([0.0, 4.0, 9.0]), exponent=0.5).tolist() == [2.0, 2.0, 3.0]
    assert row_weights(torch.zeros(3), exponent=0.5).tolist() == [1.0, 1.0, 1.0]


def test_normalised_weights_have_geometric_mean_one() -> None:
    found = normalise_rows(torch.tensor([1e-6, 4.0, 1e3]))
    assert float(found.log().mean()) == pytest.approx(0.0, abs=1e-5)


# Optimality


@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_a_small_matrix_reaches_the_eckart_young_optimum_in_the_weighted_norm(
    problem: tuple[Tensor, Tensor, int],
) -> None:
    weight, rho, rank = problem
    found = weighted_low_rank(weight, rho, rank=rank, scaling=2.0)
    error = weighted_error(weight, 2.0 * found.b @ found.a, rho)
    size = float((rho.unsqueeze(1) * weight).norm())
    assert error <= optimum(weight, rho, rank) * (1 + 1e-5) + 1e-5 * size
    assert (found.a.shape, found.b.shape) == ((rank, weight.shape[1]), (weight.shape[0], rank))


@pytest.mark.parametrize("spectrum", ["flat", "decaying"])
@pytest.mark.parametrize("rank", [4, 32])
@pytest.mark.parametrize("shape", [(300, 400), (520, 280)])
def test_a_large_matrix_comes_within_one_per_cent_of_the_optimum(
    shape: tuple[int, int], rank: int, spectrum: str
) -> None:
    assert min(shape) > EXACT_BELOW
    weight = normal(*shape)
    if spectrum == "decaying":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        weight = (u * s / torch.arange(1, len(s) + 1)) @ vh
    rho = torch.exp(normal(shape[0], seed=1))
    found = weighted_low_rank(weight, rho, rank=rank, scaling=1.0)
    assert weighted_error(weight, found.b @ found.a, rho) <= 1.01 * optimum(weight, rho, rank)


def test_the_weights_matter() -> None:
    weight, rho = normal(20, 15), torch.exp(2 * normal(20, seed=1))
    plain = weighted_low_rank(weight, torch.ones(20), rank=3, scaling=1.0)
    assert weighted_error(weight, plain.b @ plain.a, rho) > 1.05 * optimum(weight, rho, 3)


# Form of the factors


@given(problem=problems(), scaling=st.floats(0.01, 64.0))
@settings(deadline=None, max_examples=30)
def test_the_approximation_does_not_depend_on_the_scaling(
    problem: tuple[Tensor, Tensor, int], scaling: float
) -> None:
    weight, rho, rank = problem
    one = weighted_low_rank(weight, rho, rank=rank, scaling=1.0)
    other = weighted_low_rank(weight, rho, rank=rank, scaling=scaling)
    torch.testing.assert_close(
        scaling * other.b @ other.a, one.b @ one.a, rtol=1e-3, atol=1e-4 * float(weight.abs().max())
    )
    torch.testing.assert_close(other.a * scaling**0.5, one.a, rtol=1e-4, atol=1e-5)


@given(problem=problems())
@settings(deadline=None, max_examples=30)
def test_equal_weights_give_the_plain_svd(problem: tuple[Tensor, Tensor, int]) -> None:
    weight, rho, rank = problem
    found = weighted_low_rank(weight, row_weights(rho, exponent=0.0), rank=rank, scaling=1.0)
    s = torch.linalg.svdvals(weight.double())
    error = float((weight.double() - (found.b @ found.a).double()).norm())
    assert error == pytest.approx(float(s[rank:].norm()), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(found.a.norm(dim=1), s[:rank].sqrt().float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.b.norm(dim=0), s[:rank].sqrt().float(), rtol=1e-4, atol=1e-4)


@given(problem=problems())
@settings(deadline=None, max_examples=30)
def test_truncation_is_the_decomposition_at_the_smaller_rank(
    problem: tuple[Tensor, Tensor, int],
) -> None:
    weight, rho, rank = problem
    full = weighted_low_rank(weight, rho, rank=min(weight.shape), scaling=1.0)
    small = weighted_low_rank(weight, rho, rank=rank, scaling=1.0)
    torch.testing.assert_close(full.a[:rank], small.a, rtol=0, atol=0)
    torch.testing.assert_close(full.b[:, :rank], small.b, rtol=0, atol=0)


@given(problem=problems(), factor=st.floats(1e-4, 1e4))
@settings(deadline=None, max_examples=30)
def test_normalising_the_rows_leaves_the_product_alone_and_removes_the_scale(
    problem: tuple[Tensor, Tensor, int], factor: float
) -> None:
    weight, rho, rank = problem
    raw = weighted_low_rank(weight, rho, rank=rank, scaling=1.0)
    once = weighted_low_rank(weight, normalise_rows(rho), rank=rank, scaling=1.0)
    scaled = weighted_low_rank(weight, normalise_rows(factor * rho), rank=rank, scaling=1.0)
    size = float(weight.abs().max())
    torch.testing.assert_close(once.b @ once.a, raw.b @ raw.a, rtol=1e-2, atol=1e-3 * size)
    torch.testing.assert_close(scaled.a.norm(), once.a.norm(), rtol=1e-3, atol=1e-4)


@given(problem=problems())
@settings(deadline=None, max_examples=30)
def test_residual_and_product_add_up_to_the_weight_which_is_left_alone(
    problem: tuple[Tensor, Tensor, int],
) -> None:
    weight, rho, rank = problem
    before = weight.clone()
    found = weighted_low_rank(weight, rho, rank=rank, scaling=0.5)
    torch.testing.assert_close(
        found.residual + 0.5 * found.b @ found.a, weight, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(weight, before, rtol=0, atol=0)


def test_equal_input_gives_equal_factors_whatever_the_random_state() -> None:
    weight, rho = normal(300, 280), torch.exp(normal(300, seed=1))
    torch.manual_seed(1)
    first = weighted_low_rank(weight, rho, rank=8, scaling=1.0, seed=3)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second = weighted_low_rank(weight, rho, rank=8, scaling=1.0, seed=3)
    torch.testing.assert_close(first.a, second.a, rtol=0, atol=0)
    torch.testing.assert_close(first.b, second.b, rtol=0, atol=0)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state is left alone"


def test_signs_are_fixed_by_the_largest_entry() -> None:
    weight = normal(12, 9)
    found = weighted_low_rank(weight, torch.ones(12), rank=9, scaling=1.0)
    largest = found.a.abs().argmax(dim=1, keepdim=True)
    assert bool((found.a.gather(1, largest) > 0).all())


def test_a_row_without_importance_is_not_blown_up() -> None:
    weight, importance = normal(16, 32), normal(16, 32, seed=1).square()
    importance[1] = 0.0
    rho = row_weights(importance, exponent=0.5)
    found = weighted_low_rank(weight, rho, rank=4, scaling=1.0)
    product = found.b @ found.a
    assert float(product[1].norm()) <= 2 * float(weight[1].norm())


def test_a_bf16_weight_is_decomposed_in_float32() -> None:
    weight = normal(20, 10).bfloat16()
    found = weighted_low_rank(weight, torch.ones(20), rank=10, scaling=1.0)
    assert {found.a.dtype, found.b.dtype, found.residual.dtype} == {torch.float32}
    torch.testing.assert_close(found.b @ found.a, weight.float(), rtol=1e-4, atol=1e-4)


# Refusals


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(
        ValueError, match=rf"rank must lie in \[1, 3\] for a \(5, 3\) matrix, got {rank}"
    ):
        weighted_low_rank(normal(5, 3), torch.ones(5), rank=rank, scaling=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_row_weights_that_are_not_positive_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="row weights must be positive"):
        weighted_low_rank(normal(3, 3), torch.tensor([1.0, bad, 1.0]), rank=1, scaling=1.0)


def test_fisher_of_two_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 3\) and \(3, 2\)"):
        relative_importance(torch.ones(2, 3), torch.ones(3, 2), floor=1.0)


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_a_floor_that_is_not_positive_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=f"floor must be positive, got {floor}"):
        relative_importance(torch.ones(1, 1), torch.ones(1, 1), floor=floor)


def test_a_negative_exponent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exponent must not be negative, got -0\.5"):
        row_weights(torch.ones(2), exponent=-0.5)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_an_importance_that_is_negative_or_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="importance must be finite and not negative"):
        row_weights(torch.tensor([1.0, bad]), exponent=0.5)
