"""Losses that lower the forget set's own tokens: gradient ascent and the inverted hinge.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.config.method import ForgetLossId
from core.losses.alignment import counted_logits, token_nll
from core.losses.outputs import ForgetCompute, of_forget_rows
from core.losses.picked import log_probabilities, rivals


def gradient_ascent_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Raise the cross-entropy of the forget set without bound.

    .. math::
        \mathcal{L}_\mathrm{GA} = -\frac{1}{N} \sum_{t} -\log p_\theta(x_t \mid x_{<t})

    Lies in ``(-inf, 0]``: 0 when the model is certain of every token; unbounded below, so it is used
    with a retain loss or stopped early.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Scalar float32; mean over the ``N`` counted tokens of the whole batch.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.

    References:
        Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models", ACL 2023;
        Yao et al., "Machine Unlearning of Pre-trained Large Language Models", ACL 2024. Deviation from
        the code of Yao et al. with a retain set: theirs is a mean of per-row means over forget and
        retain rows together, which scales each side by its share of the rows; here each side is a
        mean over its own tokens, and ``retain_weight`` is the only scale between them.
    """
    return -token_nll(logits_BTV, labels_BT).mean()


def inverted_hinge_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Lower the answer token towards its strongest rival, then stop pushing.

    .. math::
        \mathcal{L}_\mathrm{IHL} = \frac{1}{N} \sum_{t \in \mathrm{answer}}
            \bigl[\, 1 + p_\theta(x_t \mid x_{<t}) - \max_{v \neq x_t} p_\theta(v \mid x_{<t}) \,\bigr]

    Each term lies in ``[0, 2]``: 2 when the model is certain of the answer, 1 when the answer ties
    with its rival, 0 when it is certain of the rival. Of rivals that tie, the first gets the gradient.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned, forget batch.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Scalar float32; mean over the ``N`` answer tokens of the whole batch (not a mean of
        per-sequence means).

    Raises:
        ValueError: If shapes disagree, no answer token is present, a label lies outside the
            vocabulary, or ``V < 2``.

    References:
        Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025.
        Deviation from the released code: the softmax is always applied; theirs skips it when every
        logit happens to lie in [0, 1].
    """
    if logits_BTV.shape[-1] < 2:
        raise ValueError(f"a rival needs a vocabulary of at least 2, got V={logits_BTV.shape[-1]}")
    logits_NV, targets_N = counted_logits(logits_BTV, labels_BT)
    pairs_N2 = torch.stack([targets_N, rivals(logits_NV, targets_N)], dim=-1)
    answer_N, rival_N = log_probabilities(logits_NV, pairs_N2).exp().unbind(-1)
    return (1.0 + answer_N - rival_N).mean()


FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    "ga": of_forget_rows(lambda rows, _: gradient_ascent_loss(rows.logits, rows.labels_BT)),
    "ihl": of_forget_rows(lambda rows, _: inverted_hinge_loss(rows.logits, rows.labels_BT)),
}
