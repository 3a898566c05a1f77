"""Losses that keep what the model says of the retain set.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.config.method import RetainLossId
from core.losses.alignment import align_with_reference, token_nll
from core.losses.outputs import RetainCompute


def nll_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Next-token cross-entropy: keep predicting the retained text ("gradient descent", GD).

    .. math::
        \mathcal{L}_\mathrm{NLL} = -\frac{1}{N} \sum_{t} \log p_\theta(x_t \mid x_{<t})

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Scalar float32, nats; mean over the ``N`` counted tokens of the whole batch.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.
    """
    return token_nll(logits_BTV, labels_BT).mean()


def kl_loss(logits_BTV: Tensor, reference_logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Stay close to the reference model's distribution on the retained text.

    .. math::
        \mathcal{L}_\mathrm{KL} = \frac{1}{N} \sum_{t} \sum_{v}
            p_\mathrm{ref}(v \mid x_{<t}) \bigl[\log p_\mathrm{ref}(v \mid x_{<t}) - \log p_\theta(v \mid x_{<t})\bigr]

    Not negative; 0 when the distributions agree.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        reference_logits_BTV: Float ``(B, T, V)`` from the reference model; no gradient flows into it.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Scalar float32, nats; mean over the ``N`` counted tokens of the whole batch.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.

    References:
        Yao et al., ACL 2024 (GA+KL); Maini et al., "TOFU", COLM 2024. Deviation from the released
        codes of LoKU, of OpenUnlearning and of Yao et al.: they average over every position, padding
        and prompt included; here only counted tokens count. That of Yao et al. moreover leaves out
        the entropy of the reference, which has no gradient, and adds 1e-12 inside the logarithm.
    """
    logits_NV, reference_NV, _ = align_with_reference(logits_BTV, reference_logits_BTV, labels_BT)
    log_p = torch.log_softmax(logits_NV, dim=-1)
    log_reference = torch.log_softmax(reference_NV, dim=-1)
    return torch.nn.functional.kl_div(log_p, log_reference, reduction="sum", log_target=True) / len(
        log_p
    )


RETAIN: Mapping[RetainLossId, RetainCompute] = {
    "nll": lambda rows, _: nll_loss(rows.logits, rows.labels_BT),
    "kl": lambda rows, _: kl_loss(rows.logits, rows.tensor("reference_logits"), rows.labels_BT),
}
