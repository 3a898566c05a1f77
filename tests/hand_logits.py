"""Logits that predict with given probabilities, and a small batch of unequal rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.losses import IGNORED


def log_probs(probs: Sequence[float]) -> Tensor:
    """Logits ``(1, 2, V)`` whose first position predicts with ``probs``."""
    logits = torch.zeros(1, 2, len(probs))
    logits[0, 0] = torch.tensor(probs).clamp_min(1e-30).log()
    return logits


def one_step(probs: Sequence[float], *, answer: int) -> tuple[Tensor, Tensor]:
    """``log_probs`` with the labels of one answer token."""
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
    """What the loss asks of the logits."""
    (found,) = torch.autograd.grad(loss, logits)
    return found
