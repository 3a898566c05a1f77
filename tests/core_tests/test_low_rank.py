"""A lower rank keeps what the best approximation of that rank keeps, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.training.low_rank import best_approximation


def factors(b: Tensor, a: Tensor, name: str = "layer") -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def product(tensors: dict[str, Tensor], name: str = "layer") -> Tensor:
    return tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]


def drawn(outputs: int, inputs: int, rank: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return factors(
        torch.randn(outputs, rank, generator=generator),
        torch.randn(rank, inputs, generator=generator),
    )


def test_by_hand_the_larger_of_two_directions_is_kept() -> None:
    tensors = factors(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2))
    found = best_approximation(tensors, rank=1)
    torch.testing.assert_close(product(dict(found.tensors)), torch.diag(torch.tensor([3.0, 0.0])))
    assert found.kept == pytest.approx(0.9)


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("shape", [(7, 11), (11, 7)])
def test_it_is_the_truncated_decomposition_of_the_dense_product(
    shape: tuple[int, int], rank: int
) -> None:
    tensors = drawn(*shape, 6)
    dense = product(tensors).double()
    u, sigma, v = torch.linalg.svd(dense, full_matrices=False)
    expected = (u[:, :rank] * sigma[:rank]) @ v[:rank]
    found = best_approximation(tensors, rank=rank)
    torch.testing.assert_close(product(dict(found.tensors)).double(), expected, rtol=0, atol=1e-5)
    assert found.kept == pytest.approx(float(expected.square().sum() / dense.square().sum()))


def test_the_share_that_is_kept_is_of_all_layers_together() -> None:
    tensors = factors(2.0 * torch.eye(2), torch.eye(2), "large") | factors(
        torch.eye(2), torch.eye(2), "small"
    )
    assert best_approximation(tensors, rank=1).kept == pytest.approx((4 + 1) / (8 + 2))


def test_a_layer_smaller_than_the_rank_is_kept_exactly() -> None:
    tensors = drawn(2, 9, 6)
    found = best_approximation(tensors, rank=4)
    shapes = {name: tuple(t.shape) for name, t in found.tensors.items()}
    assert shapes == {"layer.lora_A.weight": (4, 9), "layer.lora_B.weight": (2, 4)}
    torch.testing.assert_close(product(dict(found.tensors)), product(tensors))
    assert found.kept == pytest.approx(1.0)


def test_an_adapter_that_changes_nothing_loses_nothing() -> None:
    found = best_approximation(factors(torch.zeros(3, 2), torch.ones(2, 5)), rank=1)
    assert found.kept == 1.0
    assert not product(dict(found.tensors)).any()
