"""Shift and mask: the only place where ``-100`` and ``[:, :-1]`` occur.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that does not count (prompt, padding)."""


def align(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Pair each counted token with the logits that predict it.

    ``logits[b, t]`` predicts token ``t + 1``; a token counts when its label is not ``-100``.

    Args:
        logits_BTV: Float ``(B, T, V)``, straight from the model.
        labels_BT: Int64 ``(B, T)``.

    Returns:
        Float32 logits ``(N, V)`` and int64 targets ``(N,)``, row by row.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.
    """
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != labels_BT.shape:
        raise ValueError(
            "logits (B, T, V) and labels (B, T) must agree, "
            f"got {tuple(logits_BTV.shape)} and {tuple(labels_BT.shape)}"
        )
    counted = counted_tokens(labels_BT)
    targets_N = labels_BT[:, 1:][counted]
    if targets_N.numel() == 0:
        raise ValueError(f"no token counts: every label after the first is {IGNORED}")
    vocabulary = logits_BTV.shape[-1]
    if int(targets_N.min()) < 0 or int(targets_N.max()) >= vocabulary:
        raise ValueError(
            f"labels must lie in [0, {vocabulary}) or be {IGNORED}, "
            f"got {int(targets_N.min())} to {int(targets_N.max())}"
        )
    return logits_BTV[:, :-1][counted].float(), targets_N


def counted_tokens(labels_BT: Tensor) -> Tensor:
    """Bool ``(B, T - 1)``: which predictions count."""
    return labels_BT[:, 1:] != IGNORED


def token_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each counted token, float32 ``(N,)``, nats."""
    logits_NV, targets_N = align(logits_BTV, labels_BT)
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
