"""Losses on what happens inside the model: RMU's activations, and residuals of the adapter.

Shapes: B rows, T tokens, D width of the model, O outputs of a layer, N counted tokens of the batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.config.method import ForgetLossId, RetainLossId
from core.losses.alignment import (
    counted_positions,
    marked,
    predicted_positions,
    row_counts,
    row_sums,
    sent,
)
from core.losses.outputs import ForgetCompute, Residual, RetainCompute, of_forget_rows

SMALLEST_SCALE = 1e-6
"""Least rms of a pre-trained output that a residual is compared with: a silent layer divides by no zero."""


def rmu_loss(hidden_BTD: Tensor, control_D: Tensor, mask_BT: Tensor) -> Tensor:
    r"""Steer the activations of the forget set towards a fixed random vector.

    .. math::
        \mathcal{L}_\mathrm{RMU} = \frac{1}{B} \sum_b \frac{1}{N_b} \sum_{t} \frac{1}{D}
            \lVert h_\theta(b, t) - c \rVert^2

    Not negative; 0 when every marked position has the control vector.

    Args:
        hidden_BTD: Float ``(B, T, D)``: output of a block of the model being unlearned.
        control_D: Float ``(D,)``: the control vector, steering coefficient included.
        mask_BT: Bool ``(B, T)``: :func:`~core.losses.counted_positions`; positions that hold a
            labelled token, not those that predict one.

    Returns:
        Scalar float32; mean over the ``B`` sequences of a mean over their marked positions and the D
        coordinates.

    Raises:
        ValueError: If shapes disagree or nothing is marked in a row.

    References:
        Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning", ICML 2024.
        Deviation from OpenUnlearning: theirs divides sums ``(B,)`` by counts ``(B, 1)``, so that every
        sequence is divided by every other's length: mean of sums times mean of 1 / length.
    """
    if control_D.shape != hidden_BTD.shape[-1:]:
        raise ValueError(
            f"control vector must have the width {hidden_BTD.shape[-1]} of hidden, "
            f"got {tuple(control_D.shape)}"
        )
    hidden_ND = _marked(hidden_BTD, mask_BT)
    return _mean_square_by_row(hidden_ND - control_D.detach().float(), mask_BT)


def activation_loss(hidden_BTD: Tensor, reference_hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    r"""Keep the activations of the retain set: the retain part of RMU.

    .. math::
        \mathcal{L}_\mathrm{act} = \frac{1}{B} \sum_b \frac{1}{N_b} \sum_{t} \frac{1}{D}
            \lVert h_\theta(b, t) - h_\mathrm{ref}(b, t) \rVert^2

    Not negative; 0 when the activations agree.

    Args:
        hidden_BTD: Float ``(B, T, D)``: output of a block of the model being unlearned.
        reference_hidden_BTD: Float ``(B, T, D)``: the same of the reference model; no gradient flows
            into it.
        mask_BT: Bool ``(B, T)``: :func:`~core.losses.counted_positions`.

    Returns:
        Scalar float32; mean over the ``B`` sequences of a mean over their marked positions and the D
        coordinates.

    Raises:
        ValueError: If shapes disagree or nothing is marked in a row.

    References:
        Li et al., ICML 2024. Deviation from OpenUnlearning as in :func:`rmu_loss`.
    """
    if hidden_BTD.shape != reference_hidden_BTD.shape:
        raise ValueError(
            "hidden and reference hidden must agree, "
            f"got {tuple(hidden_BTD.shape)} and {tuple(reference_hidden_BTD.shape)}"
        )
    reference_ND = _marked(reference_hidden_BTD.detach(), mask_BT)
    return _mean_square_by_row(_marked(hidden_BTD, mask_BT) - reference_ND, mask_BT)


def residual_forget_loss(
    residuals: Sequence[Residual], labels_BT: Tensor, *, shift: float
) -> Tensor:
    r"""Drive what the adapter adds on the forget set to a fixed, shifted target.

    .. math::
        \frac{1}{L} \sum_l \frac{1}{N O_l} \sum_{t, o} \Bigl[
            \frac{R_l(t, o)}{\sigma_l(b)} - s\, d_l(o) \Bigr]^2,
        \qquad \sigma_l(b)^2 = \frac{1}{N_b O_l} \sum_{t, o} H_l(t, o)^2

    R is what the adapter adds in layer l, H the layer's pre-trained output, :math:`\sigma_l(b)` its
    root mean square over the counted tokens of the row (detached), d a fixed direction of rms 1. Not
    negative; :math:`s^2` while the adapter adds nothing, 0 when each residual has its target, whose
    rms is s times that of the layer's pre-trained output.

    Args:
        residuals: One per adapted layer.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        shift: s, positive.

    Returns:
        Scalar float32; mean over the layers of a mean over the ``N`` counted tokens of the whole batch
        and the outputs of the layer. The positions are those that hold a counted token; the first
        token, which nothing predicts, is left out.

    Raises:
        ValueError: If there is no layer, shapes disagree or no token counts.

    References:
        After Qin et al., "Unlearning through Residual Feature Alignment using LoRA", arXiv 2411.08443,
        from its summary: residual to zero on the retain set, to a shifted target on the forget set.
        The details are ours: scale, direction, positions, and squares.
    """
    return _mean_over_layers(residuals, labels_BT, shift=shift)


def residual_retain_loss(residuals: Sequence[Residual], labels_BT: Tensor) -> Tensor:
    r"""Keep what the adapter adds on the retain set at zero, so that retaining is doing nothing.

    .. math::
        \frac{1}{L} \sum_l \frac{1}{N O_l} \sum_{t, o} \Bigl[ \frac{R_l(t, o)}{\sigma_l(b)} \Bigr]^2

    with the signs of :func:`residual_forget_loss`. Not negative; 0 when the adapter adds nothing.

    Args:
        residuals: One per adapted layer; their directions play no part.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Scalar float32; averaged as :func:`residual_forget_loss`.

    Raises:
        ValueError: If there is no layer, shapes disagree or no token counts.

    References:
        After Qin et al., arXiv 2411.08443, as :func:`residual_forget_loss`; the details are ours.
    """
    return _mean_over_layers(residuals, labels_BT, shift=0.0)


def _marked(values_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    if values_BTD.ndim != 3 or values_BTD.shape[:2] != mask_BT.shape:
        raise ValueError(
            "values (B, T, D) and mask (B, T) must agree, "
            f"got {tuple(values_BTD.shape)} and {tuple(mask_BT.shape)}"
        )
    return marked(values_BTD, mask_BT).float()


def _mean_square_by_row(difference_ND: Tensor, mask_BT: Tensor) -> Tensor:
    sums_B = row_sums(difference_ND.square().mean(dim=-1), mask_BT)
    return (sums_B / sent(row_counts(mask_BT), sums_B.device)).mean()


def _mean_over_layers(residuals: Sequence[Residual], labels_BT: Tensor, *, shift: float) -> Tensor:
    if not residuals:
        raise ValueError("residuals of at least one layer are needed, got none")
    mask_BT = predicted_positions(labels_BT)
    return torch.stack([_layer(residual, mask_BT, shift) for residual in residuals]).mean()


def _layer(residual: Residual, mask_BT: Tensor, shift: float) -> Tensor:
    base_NO = _marked(residual.base_BTO.detach(), mask_BT)
    added_NO = _marked(residual.added_BTO, mask_BT)
    n_outputs = added_NO.shape[-1]
    if base_NO.shape[-1] != n_outputs or residual.direction_O.shape != (n_outputs,):
        raise ValueError(
            "what is added, the pre-trained output and the direction must have one width, "
            f"got {n_outputs}, {base_NO.shape[-1]} and {tuple(residual.direction_O.shape)}"
        )
    if not len(added_NO):
        raise ValueError("no token counts: no residual is compared")
    counts_R = mask_BT.sum(dim=-1)
    counts_R = counts_R[counts_R > 0]  # R rows with a counted token
    power_R = torch.stack([row.mean() for row in base_NO.square().split(counts_R.tolist())])
    row_of_N = torch.arange(len(counts_R), device=counts_R.device).repeat_interleave(counts_R)
    scale_R = power_R.sqrt().clamp_min(SMALLEST_SCALE)
    scale_N1 = scale_R.index_select(0, sent(row_of_N, scale_R.device)).unsqueeze(-1)
    target_O = shift * residual.direction_O.detach().float()
    return (added_NO / scale_N1 - target_O).square().mean()


FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    "rmu": of_forget_rows(
        lambda rows, _: rmu_loss(
            rows.tensor("hidden"), rows.tensor("control"), counted_positions(rows.labels_BT)
        )
    ),
    "residual": of_forget_rows(
        lambda rows, method: residual_forget_loss(
            rows.residuals, rows.labels_BT, shift=method.residual.shift
        )
    ),
}
RETAIN: Mapping[RetainLossId, RetainCompute] = {
    "activation": lambda rows, _: activation_loss(
        rows.tensor("hidden"),
        rows.tensor("reference_hidden"),
        counted_positions(rows.labels_BT),
    ),
    "residual": lambda rows, _: residual_retain_loss(rows.residuals, rows.labels_BT),
}
