"""Membership: does the forget set still look like text that the model was trained on?

Every score is high for text that looks *unseen* (a non-member), as in OpenUnlearning. :func:`auc` compares
the forget set with a holdout set that no model has seen: 1 when every forget row looks more like a member
than every holdout row, about 0.5 for a retrained model, below 0.5 when the forget set is over-unlearned
and looks less familiar than text that was never seen. It is never folded to at least 0.5, which would
make over-unlearning look like memorisation.

These metrics are for the final audit and not for objectives: they need a holdout set or a retain-only
model, and a model on its way from memorising to over-unlearning passes through the ideal value by itself.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

import zlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from core.losses.alignment import align, counted_tokens, row_counts, row_sums, token_nll

VARIANCE_FLOOR = 1e-6
"""Smallest variance of a position's log-probabilities that Min-K%++ divides by."""


def loss_score(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Cross-entropy of each row: text that was trained on is predicted better.

    .. math::
        s(x) = -\frac{1}{n} \sum_t \log p_\theta(x_t \mid x_{<t})

    Not negative: 0 when the model is certain of every token of the row.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being audited.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Float32 ``(B,)``, nats per token; mean over the row's own ``n`` counted tokens. High: not a member.

    Raises:
        ValueError: If shapes disagree, a row has no counted token, or a label lies outside the vocabulary.

    References:
        Yeom et al., "Privacy Risk in Machine Learning", CSF 2018.
    """
    counted_BT = counted_tokens(labels_BT)
    return row_sums(token_nll(logits_BTV, labels_BT), counted_BT) / row_counts(counted_BT)


def zlib_score(nll_B: Tensor, texts: Sequence[str]) -> Tensor:
    r"""Cross-entropy per compressed byte: text that is easy for everyone does not count as known.

    .. math::
        s(x) = \frac{\mathrm{nll}(x)}{|\mathrm{zlib}(x)|}

    Args:
        nll_B: Float ``(B,)``, nats per token, from :func:`loss_score`.
        texts: Text of the counted tokens of each row.

    Returns:
        Float32 ``(B,)``; the row's *mean* cross-entropy over the bytes of its whole text, UTF-8, compressed
        at zlib's default level. Another build of zlib may differ by a byte. High: not a member.

    Raises:
        ValueError: If there is not one text for each row.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021, who
        divide the *log-perplexity* in the same way.
    """
    if nll_B.ndim != 1 or len(nll_B) != len(texts):
        raise ValueError(
            f"each row needs one text, got nll of shape {tuple(nll_B.shape)} and {len(texts)} texts"
        )
    n_bytes = [len(zlib.compress(text.encode("utf-8"))) for text in texts]
    return nll_B.float() / torch.tensor(n_bytes, dtype=torch.float32, device=nll_B.device)


def min_k(logits_BTV: Tensor, labels_BT: Tensor, *, k: float = 0.4) -> Tensor:
    r"""Surprise of each row's least expected tokens (Min-K%): unseen text holds a few outliers.

    .. math::
        s(x) = -\frac{1}{|K|} \sum_{t \in K} \log p_\theta(x_t \mid x_{<t}), \quad
        K = \text{the } \max(1, \lfloor k n \rfloor) \text{ least likely tokens}

    Not negative; with ``k = 1`` it is :func:`loss_score`.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being audited.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        k: Share of the row's tokens that enter, in ``(0, 1]``; ``k * n`` is rounded down in double
            precision.

    Returns:
        Float32 ``(B,)``, nats per token; mean over the ``|K|`` tokens of the row. A row too short for a
        whole token is scored by its least likely one. High: not a member.

    Raises:
        ValueError: As :func:`loss_score`, or if k lies outside ``(0, 1]``.

    References:
        Shi et al., "Detecting Pretraining Data from Large Language Models", ICLR 2024, whose score is
        high for members. Deviations: OpenUnlearning leaves out the last labelled token (with labels of
        :func:`core.metrics.memorization.without_last_label` the two agree); Yao et al., ACL 2024,
        silently drop a row for which ``k * n`` is below 1, which changes the sets that the AUC compares.
    """
    return _mean_of_lowest(-token_nll(logits_BTV, labels_BT), labels_BT, k=k)


def min_k_plus_plus(logits_BTV: Tensor, labels_BT: Tensor, *, k: float = 0.4) -> Tensor:
    r"""Min-K% on log-probabilities standardised by each position's own distribution (Min-K%++).

    .. math::
        z_t = \frac{\log p_\theta(x_t \mid x_{<t}) - \mu_t}{\sigma_t}, \quad
        \mu_t = \sum_v p_v \log p_v, \quad
        \sigma_t^2 = \max\bigl(\sum_v p_v (\log p_v - \mu_t)^2, 10^{-6}\bigr), \quad
        s(x) = -\frac{1}{|K|} \sum_{t \in K} z_t

    with K the :math:`\max(1, \lfloor k n \rfloor)` tokens of lowest z. About 0 when the tokens are as likely
    as draws from the model itself; negative when they are likelier.

    Args:
        logits_BTV: Float ``(B, T, V)`` from the model being audited.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.
        k: Share of the row's tokens that enter, in ``(0, 1]``.

    Returns:
        Float32 ``(B,)``, standard deviations; mean over the ``|K|`` tokens of the row, at least one. High:
        not a member.

    Raises:
        ValueError: As :func:`min_k`.

    References:
        Zhang et al., "Min-K%++", arXiv 2404.02936, whose score is high for members. The floor of the
        variance is OpenUnlearning's. Deviation: it leaves out the last labelled token, see :func:`min_k`.
    """
    logits_NV, targets_N = align(logits_BTV, labels_BT)
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    probs_NV = log_probs_NV.exp()
    token_N = log_probs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    mean_N = (probs_NV * log_probs_NV).sum(dim=-1)
    variance_N = (probs_NV * (log_probs_NV - mean_N.unsqueeze(-1)).square()).sum(dim=-1)
    standardised_N = (token_N - mean_N) / variance_N.clamp_min(VARIANCE_FLOOR).sqrt()
    return _mean_of_lowest(standardised_N, labels_BT, k=k)


def reference_score(nll_B: Tensor, reference_nll_B: Tensor) -> Tensor:
    r"""Cross-entropy relative to a model that never saw the row.

    .. math::
        s(x) = \mathrm{nll}_\theta(x) - \mathrm{nll}_\mathrm{ref}(x)

    0 when both predict the row equally well; negative when the audited model predicts it better.

    Args:
        nll_B: Float ``(B,)``, nats per token, from :func:`loss_score`.
        reference_nll_B: The same rows under the reference model.

    Returns:
        Float32 ``(B,)``, nats per token. High: not a member.

    Raises:
        ValueError: If shapes disagree.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021, who
        compare with a smaller model; OpenUnlearning, ``mia/reference.py``.
    """
    if nll_B.ndim != 1 or nll_B.shape != reference_nll_B.shape:
        raise ValueError(
            "nll and reference nll must both be (B,), "
            f"got {tuple(nll_B.shape)} and {tuple(reference_nll_B.shape)}"
        )
    return nll_B.float() - reference_nll_B.float()


def grad_norm_score(gradients: Iterable[Tensor], *, p: float = 2.0) -> Tensor:
    r"""Size of one row's gradient: text that was trained on pulls the weights less.

    .. math::
        s(x) = \frac{1}{M} \sum_{m=1}^{M} \lVert \nabla_{\theta_m} \mathrm{nll}_\theta(x) \rVert_p

    A mean of the norms of the M parameter tensors, not the norm of the whole gradient: each tensor counts
    alike, whatever its size.

    Args:
        gradients: Of the row's mean cross-entropy, one tensor of any shape for each parameter tensor.
        p: Order of the norm, positive.

    Returns:
        Scalar float32, not negative; one row. High: not a member.

    Raises:
        ValueError: If there is no gradient or p is not positive.

    References:
        Wang et al., "Pandora's White-Box", arXiv 2402.17012; OpenUnlearning, ``gradnorm.py``. Deviation:
        theirs leaves the last labelled token out of the cross-entropy; here the caller chooses labels.
    """
    if not p > 0.0:
        raise ValueError(f"p must be positive, got {p}")
    norms = [torch.linalg.vector_norm(gradient.float(), ord=p) for gradient in gradients]
    if not norms:
        raise ValueError("a gradient norm needs at least one gradient, got none")
    return torch.stack(norms).mean()


def auc(forget_scores: Tensor, holdout_scores: Tensor) -> float:
    r"""Chance that a forget row looks more like a member than a holdout row.

    .. math::
        \mathrm{AUC} = \frac{1}{F H} \sum_{f, h}
            \mathbb{1}[s_h > s_f] + \tfrac{1}{2}\, \mathbb{1}[s_h = s_f]

    Lies in ``[0, 1]``: 1 when the forget set is still memorised, about 0.5 for a retrained model, 0 when
    it is over-unlearned. Exact, ties included (Mann-Whitney), and *not* folded.

    Args:
        forget_scores: Float ``(F,)``, high for non-members, as all scores of this module are.
        holdout_scores: Float ``(H,)``, of rows that no model has seen.

    Returns:
        The share of the ``F * H`` pairs.

    Raises:
        ValueError: If a set is not one-dimensional, is empty, or holds NaN.

    References:
        OpenUnlearning, ``mia/utils.py``. Deviation: Yao et al., ACL 2024, report
        ``max(AUC, 1 - AUC)``, which hides over-unlearning.
    """
    for name, scores in (("forget", forget_scores), ("holdout", holdout_scores)):
        if scores.ndim != 1 or scores.numel() == 0:
            raise ValueError(f"{name} scores must be (n,) with n >= 1, got {tuple(scores.shape)}")
        n_nan = int(scores.isnan().sum())
        if n_nan:
            raise ValueError(f"{name} scores must be numbers, got {n_nan} NaN of {len(scores)}")
    forget = forget_scores.double().sort().values
    holdout = holdout_scores.double()
    below = torch.searchsorted(forget, holdout, right=False)
    up_to = torch.searchsorted(forget, holdout, right=True)
    twice_wins = int((below + up_to).sum())
    return twice_wins / (2 * len(forget) * len(holdout))


def privleak(auc_unlearned: float, auc_retain: float = 0.5) -> float:
    r"""Distance of the unlearned model's AUC from a retain-only model's, in per cent.

    .. math::
        \mathrm{PrivLeak} = 100 \cdot
            \frac{(1 - \mathrm{AUC}_u) - (1 - \mathrm{AUC}_r)}{1 - \mathrm{AUC}_r}

    0 when the two agree; negative, at least -100, when the forget set is under-unlearned; positive when it
    is over-unlearned. A destroyed model may land near 0, so this is never an objective by itself.

    Args:
        auc_unlearned: :func:`auc` of the unlearned model.
        auc_retain: :func:`auc` of a model that never saw the forget set; 0.5 if none is at hand.

    Returns:
        Per cent.

    Raises:
        ValueError: If an AUC lies outside ``[0, 1]``, or ``auc_retain`` is 1.

    References:
        Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation", arXiv 2407.06460, with MIN-40%.
        Deviation: OpenUnlearning adds 1e-10 to the denominator, which matters only near
        ``auc_retain = 1``, where it gives up to 1e12 per cent; this refuses 1.
    """
    for name, value in (("auc_unlearned", auc_unlearned), ("auc_retain", auc_retain)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if auc_retain == 1.0:
        raise ValueError("auc_retain must be below 1, got 1: nothing is left to compare with")
    return 100.0 * (auc_retain - auc_unlearned) / (1.0 - auc_retain)


def _mean_of_lowest(values_N: Tensor, labels_BT: Tensor, *, k: float) -> Tensor:
    """Minus the mean of each row's ``max(1, floor(k * n))`` lowest values, ``(B,)``."""
    if not 0.0 < k <= 1.0:
        raise ValueError(f"k must lie in (0, 1], got {k}")
    rows = values_N.split(row_counts(counted_tokens(labels_BT)).tolist())
    lowest = [row.topk(max(1, int(k * len(row))), largest=False).values for row in rows]
    return -torch.stack([values.mean() for values in lowest])
