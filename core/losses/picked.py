"""Log-probabilities of a few tokens at each position, without a second tensor as wide as the vocabulary.

Shapes: N positions, V vocabulary, K tokens of each position.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ELEMENTS_AT_ONCE = {"cpu": 1 << 20}  # stays in a core's cache
_ELEMENTS_AT_ONCE_ELSEWHERE = 1 << 26


def log_probabilities(logits_NV: Tensor, tokens_NK: Tensor) -> Tensor:
    r"""Log-probability of some tokens at each position.

    .. math::
        \log p(k) = z_k - \log \sum_v e^{z_v}

    ``log_softmax`` and ``gather`` would keep float32 tensors of N x V for the backward pass; here positions
    are read a few at a time, and what is kept is the logits themselves. Their gradient has their own type.

    Args:
        logits_NV: Float ``(N, V)`` of any precision.
        tokens_NK: Int64 ``(N, K)``, in ``[0, V)``.

    Returns:
        Float32 ``(N, K)``, nats.
    """
    found: Tensor = _LogProbabilities.apply(logits_NV, tokens_NK)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def rivals(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Likeliest token of each position that is not the target: int64 ``(N,)``; of equal ones the first."""
    size = _rows_at_once(logits_NV)
    found = [
        logits.scatter(-1, targets.unsqueeze(-1), -torch.inf).max(dim=-1).indices
        for logits, targets in zip(logits_NV.split(size), targets_N.split(size), strict=True)
    ]
    return torch.cat(found)


class _LogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, tokens_NK: Tensor) -> Tensor:
        largest_N1 = logits_NV.amax(-1, keepdim=True).float()
        size = _rows_at_once(logits_NV)
        parts = zip(logits_NV.split(size), largest_N1.split(size), strict=True)
        sums_N1 = torch.cat(
            [(logits - largest).exp_().sum(-1, keepdim=True) for logits, largest in parts]
        )
        ctx.save_for_backward(logits_NV, tokens_NK, largest_N1, sums_N1)
        # in this order a likely token loses no digits
        return (logits_NV.gather(-1, tokens_NK) - largest_N1) - sums_N1.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NK: Tensor) -> tuple[Tensor, None]:
        logits_NV, tokens_NK, largest_N1, sums_N1 = ctx.saved_tensors
        found_NV = torch.empty_like(logits_NV)
        scale_N1 = -gradient_NK.sum(-1, keepdim=True) / sums_N1
        size = _rows_at_once(logits_NV)
        tensors = (logits_NV, largest_N1, scale_N1, tokens_NK, gradient_NK, found_NV)
        for logits, largest, scale, tokens, gradient, found in zip(
            *(x.split(size) for x in tensors), strict=True
        ):
            wide = (logits - largest).exp_().mul_(scale)
            found.copy_(wide.scatter_add_(-1, tokens, gradient))
        return found_NV, None


def _rows_at_once(logits_NV: Tensor) -> int:
    elements = _ELEMENTS_AT_ONCE.get(logits_NV.device.type, _ELEMENTS_AT_ONCE_ELSEWHERE)
    return max(1, elements // logits_NV.shape[-1])
