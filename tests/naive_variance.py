"""The variance of gradients from its definition, and seeded numbers to take it of."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_variance(gradients: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean squared distance from the mean, in float64: the definition, not the difference of moments."""
    weights = torch.tensor(counts, dtype=torch.float64)
    weights = (weights / weights.sum()).reshape(-1, *[1] * (gradients.ndim - 1))
    mean = (weights * gradients.double()).sum(dim=0)
    return (weights * (gradients.double() - mean).square()).sum(dim=0)
