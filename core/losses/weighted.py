"""Gradient ascent with a weight on each token.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

from collections.abc import Mapping

from torch import Tensor

from core.config.method import ForgetLossId
from core.losses.alignment import token_nll
from core.losses.outputs import ForgetCompute, of_forget_rows


def wga_loss(logits_BTV: Tensor, labels_BT: Tensor, *, beta: float) -> Tensor:
    r"""Ascend on tokens in proportion to a power of their probability: forgotten ones are left alone.

    .. math::
        \mathcal{L}_\mathrm{WGA} = \frac{1}{N} \sum_{t}
            \mathrm{sg}\bigl[ p_\theta(x_t \mid x_{<t})^{\beta} \bigr] \log p_\theta(x_t \mid x_{<t})

    with sg the stopped gradient. Lies in ``[-1 / (e beta), 0]``: 0 when the model is certain of every
    token or has lost it. ``beta = 0`` is gradient ascent.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        beta: Exponent, not negative.

    Returns:
        Scalar float32; mean over the ``N`` counted tokens of the whole batch. The weights are not
        normalised: their sum is not N.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.

    References:
        Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
        ICLR 2025.
    """
    nll_N = token_nll(logits_BTV, labels_BT)
    return -((-beta * nll_N.detach()).exp() * nll_N).mean()


def satimp_loss(logits_BTV: Tensor, labels_BT: Tensor, *, beta1: float, beta2: float) -> Tensor:
    r"""Ascend on tokens that are neither forgotten (saturation) nor certain (importance).

    .. math::
        \mathcal{L}_\mathrm{SatImp} = \frac{1}{N} \sum_{t}
            \mathrm{sg}\bigl[ p_t^{\beta_1} (1 - p_t)^{\beta_2} \bigr] \log p_t,
        \qquad p_t = p_\theta(x_t \mid x_{<t})

    with sg the stopped gradient. Not positive; ``beta2 = 0`` is :func:`wga_loss` with ``beta1``, both 0
    is gradient ascent.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being unlearned.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        beta1: Exponent of the token's probability, not negative.
        beta2: Exponent of one minus the token's probability, not negative.

    Returns:
        Scalar float32; mean over the ``N`` counted tokens of the whole batch. The weights are not
        normalised: their sum is not N.

    Raises:
        ValueError: If shapes disagree, no token counts, or a label lies outside the vocabulary.

    References:
        Yang et al., "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning", ICML 2025.
    """
    nll_N = token_nll(logits_BTV, labels_BT)
    known_N = nll_N.detach()
    others_N = 1.0 - (-known_N).exp()
    return -((-beta1 * known_N).exp() * others_N.pow(beta2) * nll_N).mean()


FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    "wga": of_forget_rows(
        lambda rows, method: wga_loss(rows.logits, rows.labels_BT, beta=method.wga.beta)
    ),
    "satimp": of_forget_rows(
        lambda rows, method: satimp_loss(
            rows.logits,
            rows.labels_BT,
            beta1=method.satimp.beta1,
            beta2=method.satimp.beta2,
        )
    ),
}
