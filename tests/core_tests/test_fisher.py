"""Fisher information: squared gradients, averaged over tokens in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.fisher import diagonal_fisher


def test_two_batches_by_hand() -> None:
    first = {"w": torch.tensor([[1.0, -2.0]])}
    second = {"w": torch.tensor([[3.0, 0.0]])}
    found = diagonal_fisher([(first, 1), (second, 3)])
    # (1 * [1, 4] + 3 * [9, 0]) / 4
    torch.testing.assert_close(found["w"], torch.tensor([[7.0, 1.0]]))


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    n_out=st.integers(1, 4),
    n_in=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_it_equals_a_float64_loop_over_entries(
    counts: list[int], n_out: int, n_in: int, seed: int
) -> None:
    gradients = torch.randn(len(counts), n_out, n_in, generator=torch.Generator().manual_seed(seed))
    found = diagonal_fisher(({"w": g}, n) for g, n in zip(gradients, counts, strict=True))["w"]
    for o in range(n_out):
        for i in range(n_in):
            entries = [float(g[o, i]) for g in gradients.double()]
            expected = sum(n * e * e for n, e in zip(counts, entries, strict=True)) / sum(counts)
            assert float(found[o, i]) == pytest.approx(expected, rel=1e-5)


def test_bf16_gradients_are_accumulated_in_float32() -> None:
    gradient = torch.full((2, 2), 0.1, dtype=torch.bfloat16)
    found = diagonal_fisher(({"w": gradient}, 7) for _ in range(2000))["w"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient.float().square(), rtol=1e-5, atol=0)
    low = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(2000):
        low += gradient[0, 0].square() * 7
    assert float(low) / 14000 < 0.5 * float(found[0, 0])  # what accumulating in bf16 would give


def test_the_gradients_are_left_alone() -> None:
    gradient = torch.tensor([2.0])
    found = diagonal_fisher([({"w": gradient}, 1), ({"w": gradient}, 1)])
    assert found["w"].tolist() == [4.0]
    assert gradient.tolist() == [2.0]


def test_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one batch, got none"):
        diagonal_fisher([])


@pytest.mark.parametrize("count", [0, -3])
def test_a_batch_that_counts_no_token_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"must count at least one token, got {count}"):
        diagonal_fisher([({"w": torch.ones(1)}, count)])
