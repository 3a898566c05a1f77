"""Losses that teach other tokens on the forget set, and the choice of those tokens.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from core.config.method import ForgetLossId
from core.losses.alignment import (
    align,
    counted_positions,
    counted_tokens,
    predicted_only,
    token_nll,
)
from core.losses.outputs import ForgetCompute, of_forget_rows


def random_label_loss(logits_BTV: Tensor, labels_BT: Tensor, other_labels_BT: Tensor) -> Tensor:
    r"""Next-token cross-entropy towards random tokens in place of the true ones.

    .. math::
        \mathcal{L}_\mathrm{RL} = -\frac{1}{N} \sum_{t} \log p_\theta(q_t \mid x_{<t}),
            \qquad q_t \sim \mathrm{Uniform}(V)

    Not negative; in expectation over the draws it is least, ``log V``, when the model is indifferent.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned, which reads the true tokens.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        other_labels_BT: Int64 ``(B, T)`` from :func:`random_labels`.

    Returns:
        Scalar float32, nats; mean over the ``N`` counted tokens of the whole batch.

    Raises:
        ValueError: If shapes disagree, no token counts, other tokens count than in ``labels_BT``, or a
            label lies outside the vocabulary.

    References:
        Yao et al., "Machine Unlearning of Pre-trained Large Language Models", ACL 2024.
    """
    return _other_label_nll(logits_BTV, labels_BT, other_labels_BT)


def adversarial_label_loss(
    logits_BTV: Tensor, labels_BT: Tensor, other_labels_BT: Tensor
) -> Tensor:
    r"""Next-token cross-entropy towards the likeliest wrong tokens in place of the true ones.

    .. math::
        \mathcal{L}_\mathrm{adv} = -\frac{1}{N} \sum_{t} \log p_\theta(a_t \mid x_{<t}),
            \qquad a_t = \arg\max_{v \neq x_t} p(v \mid x_{<t})

    Not negative; 0 when the model is certain of every wrong token.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned, which reads the true tokens.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        other_labels_BT: Int64 ``(B, T)`` from :func:`adversarial_labels`.

    Returns:
        Scalar float32, nats; mean over the ``N`` counted tokens of the whole batch.

    Raises:
        ValueError: If shapes disagree, no token counts, other tokens count than in ``labels_BT``, or a
            label lies outside the vocabulary.

    References:
        Yao et al., "Machine Unlearning of Pre-trained Large Language Models", ACL 2024.
    """
    return _other_label_nll(logits_BTV, labels_BT, other_labels_BT)


def random_labels(labels_BT: Tensor, *, vocabulary: int, seed: int) -> Tensor:
    """A token drawn uniformly from the vocabulary for each labelled one; it may be the true one.

    The draws follow numpy's legacy generator, row by row: its stream is the same in every version and
    on every machine, which torch does not promise, and it is the one that the released code draws from.

    Args:
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        vocabulary: V; tokens are drawn from ``[0, V)``.
        seed: From ``[0, 2**32)``. The draws depend on which rows are given together: for labels that
            do not depend on the layout of micro-batches, give one row at a time.

    Returns:
        Int64 ``(B, T)`` on the device of ``labels_BT``; ``-100`` where that has it.

    References:
        Yao et al., ACL 2024. Deviations from the released code: every labelled token is replaced,
        also a special one (theirs keeps those), and a draw equal to the padding id stays (theirs
        then ignores the token).
    """
    labelled = counted_positions(labels_BT)
    draws = np.random.RandomState(seed).randint(0, vocabulary, size=int(labelled.sum()))
    other_BT = labels_BT.clone()
    other_BT[labelled] = torch.as_tensor(draws, dtype=torch.int64).to(labels_BT.device)
    return other_BT


@torch.no_grad()
def adversarial_labels(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""The likeliest wrong token in place of each counted one.

    .. math::
        a_t = \arg\max_{v \neq x_t} p(v \mid x_{<t})

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model that chooses: the target model, before unlearning.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Int64 ``(B, T)`` on the device of ``labels_BT``; ``-100`` where that has it, and on the first token.
        The token at ``t`` comes from ``logits[t - 1]``, the distribution of what stands there.

    Raises:
        ValueError: If shapes disagree, no token counts, a label lies outside the vocabulary, or
            ``V < 2``.

    References:
        Yao et al., ACL 2024. Deviations from the released code: theirs takes the token at ``t`` from
        ``logits[t]``, the distribution of the next one, and never chooses the last entry of the
        vocabulary; of its sampling among the likeliest, only the published choice of the first one
        is kept.
    """
    if logits_BTV.shape[-1] < 2:
        raise ValueError(
            f"a wrong token needs a vocabulary of at least 2, got V={logits_BTV.shape[-1]}"
        )
    logits_NV, targets_N = align(logits_BTV, labels_BT)
    logits_NV.scatter_(-1, targets_N.unsqueeze(-1), -torch.inf)  # a copy: see align
    other_BT = predicted_only(labels_BT)
    other_BT[counted_positions(other_BT)] = logits_NV.argmax(dim=-1).to(other_BT.device)
    return other_BT


def _other_label_nll(logits_BTV: Tensor, labels_BT: Tensor, other_labels_BT: Tensor) -> Tensor:
    if labels_BT.shape != other_labels_BT.shape:
        raise ValueError(
            "labels and other labels must have one shape, "
            f"got {tuple(labels_BT.shape)} and {tuple(other_labels_BT.shape)}"
        )
    nll_N = token_nll(logits_BTV, other_labels_BT)
    differ = counted_tokens(labels_BT) != counted_tokens(other_labels_BT)
    if differ.any():
        raise ValueError(
            "labels and other labels must count the same tokens, "
            f"got {int(differ.sum())} that only one of them counts"
        )
    return nll_N.mean()


FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    "random_labels": of_forget_rows(
        lambda rows, _: random_label_loss(rows.logits, rows.labels_BT, rows.tensor("random_labels"))
    ),
    "adversarial_labels": of_forget_rows(
        lambda rows, _: adversarial_label_loss(
            rows.logits, rows.labels_BT, rows.tensor("adversarial_labels")
        )
    ),
}
