"""Losses that prefer not to answer: NPO, SimNPO and DPO, on whole sequences.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.config.method import ForgetLossId
from core.losses.alignment import counted_tokens, row_counts, sent, sequence_nll
from core.losses.outputs import ForgetCompute, of_alternatives, of_both, of_forget_rows
from core.losses.retain import nll_loss


def npo_loss(
    logits_BTV: Tensor, labels_BT: Tensor, reference_nll_B: Tensor, *, beta: float
) -> Tensor:
    r"""Make each forget sequence less likely than under the reference model, ever more gently.

    .. math::
        \mathcal{L}_\mathrm{NPO} = -\frac{2}{\beta} \frac{1}{B} \sum_b
            \log \sigma\bigl( \beta\, [\ell_\theta(b) - \ell_\mathrm{ref}(b)] \bigr),
        \qquad \ell(b) = -\sum_{t} \log p(x_t \mid x_{<t})

    Positive; ``2 log 2 / beta`` for the reference model itself, towards 0 once every sequence is much
    less likely. Towards ``beta = 0`` its gradient is that of gradient ascent on the summed
    cross-entropy of a sequence: ``N / B`` times that of the token mean.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        reference_nll_B: Float ``(B,)``: :func:`~core.losses.sequence_nll` under the reference model;
            no gradient flows into it.
        beta: Inverse temperature, positive, per nat of a sequence.

    Returns:
        Scalar float32; mean over the ``B`` sequences, whatever their lengths.

    Raises:
        ValueError: If shapes disagree, a row has no counted token, or a label lies outside the
            vocabulary.

    References:
        Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective
        Unlearning", COLM 2024.
    """
    nll_B = sequence_nll(logits_BTV, labels_BT)
    return _mean_preference(nll_B - _reference(reference_nll_B, labels_BT), beta)


def simnpo_loss(logits_BTV: Tensor, labels_BT: Tensor, *, beta: float, delta: float) -> Tensor:
    r"""Make each forget sequence unlikely per token; no reference model.

    .. math::
        \mathcal{L}_\mathrm{SimNPO} = -\frac{2}{\beta} \frac{1}{B} \sum_b
            \log \sigma\Bigl( \beta\, \Bigl[\frac{\ell_\theta(b)}{N_b} - \delta\Bigr] \Bigr)

    Positive; with ``delta = 0`` it is ``2 log 2 / beta`` when the model is certain of every token,
    towards 0 once the cross-entropy per token lies well above ``delta``.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        beta: Inverse temperature, positive, per nat of a token.
        delta: Margin, nats per token.

    Returns:
        Scalar float32; mean over the ``B`` sequences of a mean over their ``N_b`` counted tokens.

    Raises:
        ValueError: If shapes disagree, a row has no counted token, or a label lies outside the
            vocabulary.

    References:
        Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM
        Unlearning", arXiv 2410.07163. Deviation from OpenUnlearning: theirs divides by the number of
        labels, which is one too many where the first token has one; here by the predicted tokens.
    """
    nll_B = sequence_nll(logits_BTV, labels_BT)
    counts_B = sent(row_counts(counted_tokens(labels_BT)), nll_B.device)
    return _mean_preference(nll_B / counts_B - delta, beta)


def dpo_loss(
    logits_BTV: Tensor,
    labels_BT: Tensor,
    reference_nll_B: Tensor,
    alternative_logits_BTV: Tensor,
    alternative_labels_BT: Tensor,
    alternative_reference_nll_B: Tensor,
    *,
    beta: float,
) -> Tensor:
    r"""Prefer an alternative answer to the one to forget, relative to the reference model.

    .. math::
        \mathcal{L}_\mathrm{DPO} = -\frac{2}{\beta} \frac{1}{B} \sum_b \log \sigma\bigl( \beta\,
            [\ell_\theta(b) - \ell_\mathrm{ref}(b)] - \beta\, [\ell_\theta(a_b) - \ell_\mathrm{ref}(a_b)] \bigr)

    with the summed cross-entropy :math:`\ell` of the sequence b to forget and of its alternative
    :math:`a_b`. Positive; ``2 log 2 / beta`` for the reference model itself.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned, rows to forget.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        reference_nll_B: Float ``(B,)``: :func:`~core.losses.sequence_nll` under the reference model.
        alternative_logits_BTV: The same of the alternative answers, row for row; T may differ.
        alternative_labels_BT: The same of the alternative answers.
        alternative_reference_nll_B: The same of the alternative answers.
        beta: Inverse temperature, positive, per nat of a sequence.

    Returns:
        Scalar float32; mean over the ``B`` pairs of sequences.

    Raises:
        ValueError: If shapes disagree, a row has no counted token, a label lies outside the
            vocabulary, or there are not as many alternatives as rows.

    References:
        Rafailov et al., "Direct Preference Optimization", NeurIPS 2023; Maini et al., "TOFU", COLM 2024
        (refusals as alternatives, "IdkDPO"). As in OpenUnlearning the factor is ``2 / beta``, that of
        NPO, where Rafailov et al. have 1.
    """
    if len(labels_BT) != len(alternative_labels_BT):
        raise ValueError(
            "each row needs one alternative, "
            f"got {len(labels_BT)} rows and {len(alternative_labels_BT)} alternatives"
        )
    nll_B = sequence_nll(logits_BTV, labels_BT)
    alternative_B = sequence_nll(alternative_logits_BTV, alternative_labels_BT)
    forgotten_B = nll_B - _reference(reference_nll_B, labels_BT)
    lost_B = alternative_B - _reference(alternative_reference_nll_B, alternative_labels_BT)
    return _mean_preference(forgotten_B - lost_B, beta)


def _mean_preference(margin_B: Tensor, beta: float) -> Tensor:
    return -(2.0 / beta) * torch.nn.functional.logsigmoid(beta * margin_B).mean()


def _reference(nll_B: Tensor, labels_BT: Tensor) -> Tensor:
    if nll_B.shape != labels_BT.shape[:1]:
        raise ValueError(
            "reference_nll must have one number a row, "
            f"got {tuple(nll_B.shape)} for {len(labels_BT)} rows"
        )
    return nll_B.detach().float()


FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    "npo": of_forget_rows(
        lambda rows, method: npo_loss(
            rows.logits,
            rows.labels_BT,
            rows.tensor("reference_nll"),
            beta=method.npo.beta,
        )
    ),
    "simnpo": of_forget_rows(
        lambda rows, method: simnpo_loss(
            rows.logits,
            rows.labels_BT,
            beta=method.simnpo.beta,
            delta=method.simnpo.delta,
        )
    ),
    "dpo": of_both(
        lambda rows, alternatives, method: dpo_loss(
            rows.logits,
            rows.labels_BT,
            rows.tensor("reference_nll"),
            alternatives.logits,
            alternatives.labels_BT,
            alternatives.tensor("reference_nll"),
            beta=method.dpo.beta,
        )
    ),
    "idk_nll": of_alternatives(lambda rows, _: nll_loss(rows.logits, rows.labels_BT)),
}
