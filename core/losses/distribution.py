"""Losses that change the distribution over the vocabulary: UNDIAL, CE-U and primal-dual unlearning.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.config.method import ForgetLossId
from core.losses.alignment import align, align_with_reference, without_first
from core.losses.outputs import ForgetCompute, of_forget_rows


def undial_loss(
    logits_BTV: Tensor, reference_logits_BTV: Tensor, labels_BT: Tensor, *, beta: float
) -> Tensor:
    r"""Distil from the reference model with the true token's logit lowered.

    .. math::
        \mathcal{L}_\mathrm{UNDIAL} = -\frac{1}{N} \sum_{t} \sum_{v} q_t(v) \log p_\theta(v \mid x_{<t}),
        \qquad q_t = \mathrm{softmax}\bigl( z_{\mathrm{ref}, t} - \beta\, e_{x_t} \bigr)

    At least the mean entropy of the targets ``q``, which it reaches when the model agrees with them.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        reference_logits_BTV: Float ``(B, T, V)`` from the reference model; no gradient flows into it.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        beta: How far the true token's logit is lowered, positive.

    Returns:
        Scalar float32, nats; mean over the ``N`` counted tokens of the whole batch.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.

    References:
        Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large
        Language Models", NAACL 2025. Deviation from OpenUnlearning: theirs averages over prompt and
        padding too, where ``-100``, read as an index, lowers the entry ``V - 100`` of the vocabulary;
        here only counted tokens count.
    """
    logits_NV, wanted_NV, targets_N = align_with_reference(
        logits_BTV, reference_logits_BTV, labels_BT
    )
    at_N1 = targets_N.unsqueeze(-1)
    wanted_NV.scatter_add_(-1, at_N1, torch.full_like(at_N1, -beta, dtype=torch.float32))
    return torch.nn.functional.cross_entropy(logits_NV, wanted_NV.softmax(dim=-1))


def ceu_loss(logits_BTV: Tensor, labels_BT: Tensor, *, ignore_first_tokens: int) -> Tensor:
    r"""Distil from the model itself without the true token.

    .. math::
        \mathcal{L}_\mathrm{CEU} = -\frac{1}{N} \sum_{t} \sum_{v \neq x_t}
            \mathrm{sg}\Bigl[ \frac{p_\theta(v \mid x_{<t})}{1 - p_\theta(x_t \mid x_{<t})} \Bigr]
            \log p_\theta(v \mid x_{<t})

    with sg the stopped gradient. Positive; its gradient with respect to the logits is, per token,
    ``p`` on the true token and ``-p(v) p / (1 - p)`` on the others: bounded, and 0 once the true token
    is lost.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        ignore_first_tokens: First labelled tokens of each row that the loss leaves alone. As in
            OpenUnlearning the count starts at the first label, also where that is the first token of
            the row, which nothing predicts.

    Returns:
        Scalar float32, nats; mean over the ``N`` tokens of the whole batch that are counted and not
        left alone.

    Raises:
        ValueError: If shapes disagree, no token counts or none is left, a label lies outside the
            vocabulary, or ``V < 2``.

    References:
        Yang, "CE-U: Cross Entropy Unlearning", arXiv 2503.01224.
    """
    if logits_BTV.shape[-1] < 2:
        raise ValueError(
            f"a distribution without the true token needs V >= 2, got V={logits_BTV.shape[-1]}"
        )
    logits_NV, targets_N = align(
        logits_BTV, without_first(labels_BT, ignore_first_tokens), among_BT=labels_BT
    )
    others_NV = logits_NV.detach().scatter(-1, targets_N.unsqueeze(-1), -torch.inf)
    return torch.nn.functional.cross_entropy(logits_NV, others_NV.softmax(dim=-1))


def pdu_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Flatten the logits of the forget set: the forget part of primal-dual unlearning.

    .. math::
        \mathcal{L}_\mathrm{PDU} = \frac{1}{N} \sum_{t}
            \Bigl[ \max_v z_{t}(v) - \frac{1}{V} \sum_v z_{t}(v) \Bigr]^2

    Not negative; 0 when every logit of every position is the same. It does not know which token is
    the true one.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Scalar float32; mean over the ``N`` positions of the whole batch that predict a counted token.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.

    References:
        Entesari et al., "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language
        Models", arXiv 2506.05314. Deviation from OpenUnlearning: theirs takes the positions that hold
        a labelled token, ``logits[t]`` with ``labels[t]``, so that the prediction of the first answer
        token is left alone and what follows the last one is flattened; here, as in every other loss,
        ``logits[t]`` goes with ``labels[t + 1]``.
    """
    logits_NV, _ = align(logits_BTV, labels_BT)
    return (logits_NV.max(dim=-1).values - logits_NV.mean(dim=-1)).square().mean()


def dual_update(weight: float, retain_loss: float, *, limit: float, step: float) -> float:
    r"""The dual variable after a step: it grows while the retain loss exceeds its limit.

    .. math::
        \lambda \leftarrow \max\bigl(0,\; \lambda + \eta\, [\mathcal{L}_\mathrm{retain} - \epsilon] \bigr)

    Args:
        weight: :math:`\lambda`, the present weight of the retain loss, not negative.
        retain_loss: Retain loss of the step, nats per token; of the whole batch, the same on all ranks.
        limit: :math:`\epsilon`, what the retain loss may be.
        step: :math:`\eta`, step of the dual variable.

    Returns:
        The next weight, not negative.

    References:
        Entesari et al., arXiv 2506.05314. Deviation from OpenUnlearning: theirs reads the retain loss
        of a micro-batch on one rank, so that weights can drift apart; the caller gives that of the step.
    """
    return max(0.0, weight + step * (retain_loss - limit))


FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    "undial": of_forget_rows(
        lambda rows, method: undial_loss(
            rows.logits,
            rows.tensor("reference_logits"),
            rows.labels_BT,
            beta=method.undial.beta,
        )
    ),
    "ceu": of_forget_rows(
        lambda rows, method: ceu_loss(
            rows.logits,
            rows.labels_BT,
            ignore_first_tokens=method.ceu.ignore_first_tokens,
        )
    ),
    "pdu": of_forget_rows(lambda rows, _: pdu_loss(rows.logits, rows.labels_BT)),
}
