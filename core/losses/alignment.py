"""Shift and mask: the only place where ``-100`` and ``[:, :-1]`` occur.

Labels may lie on the device of what they label, or on the host: then no loss waits for the device.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

import torch
from torch import Tensor

from core.losses.picked import log_probabilities

IGNORED = -100
"""Label of a token that does not count (prompt, padding)."""


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on a device, which takes it when it comes to it: nobody waits."""
    return tensor.to(device, non_blocking=True)


def marked(values: Tensor, mask: Tensor) -> Tensor:
    """Those of the values ``(..., K)`` at the marked positions, ``(N, K)``; the mask may lie on the host."""
    if mask.device == values.device:
        return values[mask]
    places_N = sent(mask.flatten().nonzero().squeeze(-1), values.device)
    return values.flatten(0, mask.ndim - 1).index_select(0, places_N)


def align(
    logits: Tensor, labels_BT: Tensor, *, among_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pair each counted token with the logits that predict it.

    ``logits[b, t]`` predicts token ``t + 1``; a token counts when its label is not ``-100``.

    Args:
        logits: Float ``(B, T, V)``, straight from the model; or ``(N, V)``, those of the counted tokens
            alone, row by row.
        labels_BT: Int64 ``(B, T)``, on the device of the logits or on the host.
        among_BT: Labels that say which tokens ``(N, V)`` are of, where ``labels_BT`` counts some of them only.

    Returns:
        Float32 logits ``(N, V)``, always a copy, and int64 targets ``(N,)``, row by row, on one device.

    Raises:
        ValueError: If shapes disagree, no token counts, or, of labels on the host, a label lies outside the vocabulary;
            ids are checked when rows are read (:func:`core.data.tokens.token_rows`).
    """
    found_NV, targets_N = counted_logits(logits, labels_BT, among_BT=among_BT)
    return found_NV.to(torch.float32, copy=True), targets_N


def counted_logits(
    logits: Tensor, labels_BT: Tensor, *, among_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`align`, with the logits as they are: of their own type, and not copied where none is left out."""
    if labels_BT.ndim != 2 or not (
        logits.ndim == 2 or (logits.ndim == 3 and logits.shape[:2] == labels_BT.shape)
    ):
        raise ValueError(
            "logits (B, T, V) and labels (B, T) must agree, "
            f"got {tuple(logits.shape)} and {tuple(labels_BT.shape)}"
        )
    counted = counted_tokens(labels_BT)
    targets_N = labels_BT[:, 1:][counted]
    if logits.ndim == 3:
        found_NV = marked(logits[:, :-1], counted)
    else:
        given = counted if among_BT is None else counted_tokens(among_BT)
        found_NV = _of_counted(logits, counted, given)
    if targets_N.numel() == 0:
        raise ValueError(f"no token counts: every label after the first is {IGNORED}")
    if targets_N.device.type == "cpu":  # elsewhere a look would wait for the device, at every loss
        _refuse_outside(targets_N, logits.shape[-1])
    return found_NV, sent(targets_N, logits.device)


def _of_counted(logits_MV: Tensor, counted: Tensor, given: Tensor) -> Tensor:
    """Those of the counted positions, of logits of the given ones, of which there are M."""
    n_given = int(given.sum())
    if len(logits_MV) != n_given:
        raise ValueError(
            f"logits (N, V) must be of the counted tokens alone, got {len(logits_MV)} for {n_given}"
        )
    return logits_MV if counted is given else marked(logits_MV, counted[given])


def _refuse_outside(targets_N: Tensor, vocabulary: int) -> None:
    lowest, highest = int(targets_N.min()), int(targets_N.max())
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(
            f"labels must lie in [0, {vocabulary}) or be {IGNORED}, got {lowest} to {highest}"
        )


def align_with_reference(
    logits: Tensor, reference_logits: Tensor, labels_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`align`, for logits of two models on the same rows; no gradient flows into the reference.

    Returns:
        Float32 logits and reference logits ``(N, V)``, always copies, and int64 targets ``(N,)``.

    Raises:
        ValueError: As :func:`align`, or if the two models' logits disagree in shape.
    """
    if logits.shape != reference_logits.shape:
        raise ValueError(
            "logits and reference logits must agree, "
            f"got {tuple(logits.shape)} and {tuple(reference_logits.shape)}"
        )
    logits_NV, targets_N = align(logits, labels_BT)
    reference_NV, _ = align(reference_logits.detach(), labels_BT)
    return logits_NV, reference_NV, targets_N


def counted_tokens(labels_BT: Tensor) -> Tensor:
    """Bool ``(B, T - 1)``: which predictions count."""
    return labels_BT[:, 1:] != IGNORED


def counted_positions(labels_BT: Tensor) -> Tensor:
    """Bool ``(B, T)``: which tokens have a label, the first included, although nothing predicts it."""
    return labels_BT != IGNORED


def predicted_positions(labels_BT: Tensor) -> Tensor:
    """Bool ``(B, T)``: where the counted tokens stand: :func:`counted_positions` without the first."""
    first = torch.zeros_like(labels_BT[:, :1], dtype=torch.bool)
    return torch.cat([first, counted_tokens(labels_BT)], dim=1)


def predicted_only(labels_BT: Tensor) -> Tensor:
    """Labels with ``-100`` on the first token, which nothing predicts."""
    return labels_BT.masked_fill(~predicted_positions(labels_BT), IGNORED)


def without_first(labels_BT: Tensor, n_tokens: int) -> Tensor:
    """Labels with ``-100`` on the first ``n_tokens`` labelled tokens of each row.

    The count starts at the first label of the row, predicted or not: in a row without a prompt the
    first labelled token is never predicted, and leaving out one token leaves out none that counts.
    """
    labelled = counted_positions(labels_BT)
    return labels_BT.masked_fill(labelled & (labelled.cumsum(dim=-1) <= n_tokens), IGNORED)


def token_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each counted token, float32 ``(N,)``, nats, row by row."""
    logits_NV, targets_N = counted_logits(logits_BTV, labels_BT)
    return -log_probabilities(logits_NV, targets_N.unsqueeze(-1)).squeeze(-1)


def sequence_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each row: the sum over its counted tokens.

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Float32 ``(B,)``, nats.

    Raises:
        ValueError: As :func:`align`, or if a row has no counted token.
    """
    return row_sums(token_nll(logits_BTV, labels_BT), counted_tokens(labels_BT))


def row_sums(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the marked positions of each row, ``(B,)``; ``values_N`` stand row by row.

    Values with more dimensions, ``(N, K)``, give ``(B, K)``.

    Raises:
        ValueError: If nothing is marked in a row.
    """
    counts = row_counts(mask_BT).tolist()
    return torch.stack([row.sum(dim=0) for row in values_N.split(counts)])


def row_counts(mask_BT: Tensor) -> Tensor:
    """Int64 ``(B,)``: marked positions of each row, on the device of the mask.

    Raises:
        ValueError: If nothing is marked in a row.
    """
    counts_B = mask_BT.sum(dim=-1)
    empty = (counts_B == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"every row needs a counted token, rows {empty} of the batch have none")
    return counts_B
