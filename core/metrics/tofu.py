"""TOFU's metrics: truth ratio, normalised probability, model utility, forget quality.

All start from length-normalised log-probabilities of answers, ``log p(a | q) / |a|``, nats per token: minus
:func:`core.metrics.memorization.answer_nll`. They are computed in float64, because ratios of small
probabilities are not averaged well in float32.

Shapes: B rows (questions), K wrong answers of each row.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.metrics.composites import harmonic_mean

UTILITY_PARTS = tuple(
    f"{split}_{metric}"
    for split in ("retain", "real_authors", "world_facts")
    for metric in ("probability", "rouge", "truth_ratio")
)
"""The nine numbers of model utility: three metrics on three sets."""

LOG10_P_FLOOR = -20.0
"""Where the log of the p-value is clipped: complete separation gets there from 36 rows a side on."""

FEWEST_ROWS = 40
"""Rows of TOFU's smallest forget set, forget01: on fewer, forget quality hardly tells models apart."""


@dataclass(frozen=True, kw_only=True)
class ForgetQuality:
    """Two-sample Kolmogorov-Smirnov test on truth ratios.

    Only ``statistic`` and ``log10_p`` may be objectives. ``p_value`` is to be reported and never optimised:
    at complete separation it depends on nothing but the number of rows (1.9e-23 for 40 rows a side, 1e-239
    for 400), so p-values of different splits do not compare, and it spans hundreds of orders of magnitude
    in which one model is no worse than another.

    Attributes:
        p_value: Two-sided; near 1 when the two models' ratios could come from one distribution.
        statistic: D, the largest distance of the two distribution functions; 0 for the same, 1 for
            separate ones.
        log10_p: Log of the p-value, clipped from below at -20 (:data:`LOG10_P_FLOOR`), which complete
            separation reaches on every TOFU split.
    """

    p_value: float
    statistic: float
    log10_p: float


def truth_ratio(
    paraphrase_log_prob_B: Tensor,
    wrong_log_prob_BK: Tensor,
    *,
    mean: Literal["geometric", "arithmetic"],
) -> Tensor:
    r"""Probability of wrong answers relative to a paraphrase of the right one.

    .. math::
        R = \frac{\operatorname{mean}_k\, p(\hat a_k \mid q)^{1/|\hat a_k|}}
                 {p(\tilde a \mid q)^{1/|\tilde a|}}, \quad
        \operatorname{mean}_k u_k = \frac{1}{K} \sum_k u_k
        \ \text{ or }\ \Bigl(\prod_k u_k\Bigr)^{1/K}

    Positive: below 1 when the model prefers the truth, 1 when it cannot tell, above 1 when it prefers the
    wrong answers. The geometric mean is never the larger one. The two give different numbers: pin one, and
    never compare with a number that was computed with the other.

    Args:
        paraphrase_log_prob_B: Float ``(B,)``; ``log p / length`` of the paraphrased right answer, at most 0.
        wrong_log_prob_BK: Float ``(B, K)``; the same of each wrong answer. Each answer is normalised by its
            own length.
        mean: ``geometric`` as in OpenUnlearning and in the tables of the TOFU and LoKU code
            (``aggregate_eval_stat.py``); ``arithmetic`` as in TOFU's formula and LoKU's ``utils.py``.

    Returns:
        Float64 ``(B,)``, one ratio for each question; infinite where it overflows.

    Raises:
        ValueError: If shapes disagree, there is no wrong answer, a log-probability is positive (was it a
            loss?) or not finite, or the mean has another name.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024. Deviation: OpenUnlearning
        adds 1e-10 to the denominator. LoKU's forget-quality code has 1/R, on which its test gives the same.
    """
    _require_log_probs(paraphrase_log_prob_B, wrong_log_prob_BK)
    wrong_BK = wrong_log_prob_BK.double()
    if mean == "geometric":
        wrong_B = wrong_BK.mean(dim=1)
    elif mean == "arithmetic":
        wrong_B = torch.logsumexp(wrong_BK, dim=1) - math.log(wrong_BK.shape[1])
    else:
        raise ValueError(f"mean must be geometric or arithmetic, got {mean!r}")
    return torch.exp(wrong_B - paraphrase_log_prob_B.double())


def forget_truth_score(ratios: Tensor) -> Tensor:
    r"""Truth ratio as a score of the forget set, :math:`\min(R, 1/R)`.

    Lies in ``[0, 1]``: 1 when the model cannot tell truth from falsehood, 0 when it is certain of either.

    Args:
        ratios: Float ``(B,)`` of :func:`truth_ratio`.

    Returns:
        ``(B,)``, one score for each question; the metric is their mean.

    Raises:
        ValueError: If a ratio is negative or NaN.
    """
    _require_ratios("ratios", ratios)
    return torch.minimum(ratios, 1.0 / ratios)


def utility_truth_score(ratios: Tensor) -> Tensor:
    r"""Truth ratio as a score of what is to be kept, :math:`\max(0, 1 - R)`.

    Lies in ``[0, 1]``: 1 when the model is certain of the truth, 0 when it cannot tell or is wrong.

    Args:
        ratios: Float ``(B,)`` of :func:`truth_ratio`.

    Returns:
        ``(B,)``, one score for each question; the metric is their mean.

    Raises:
        ValueError: If a ratio is negative or NaN.
    """
    _require_ratios("ratios", ratios)
    return (1.0 - ratios).clamp_min(0.0)


def truth_preference(ratios: Tensor) -> Tensor:
    r"""Truth ratio as memorisation, :math:`1 / (1 + R) = p_\mathrm{true} / (p_\mathrm{true} + p_\mathrm{wrong})`.

    Lies in ``[0, 1]``: 1 when the model is certain of the truth, 0.5 when it cannot tell, 0 when it is
    certain of the wrong answers. The form that enters :func:`core.metrics.composites.memorization_score`.

    Args:
        ratios: Float ``(B,)`` of :func:`truth_ratio`.

    Returns:
        ``(B,)``, one score for each question; the metric is their mean.

    Raises:
        ValueError: If a ratio is negative or NaN.

    References:
        OpenUnlearning, arXiv 2506.12618, appendix C.3, and its aggregator ``prob_mean``.
    """
    _require_ratios("ratios", ratios)
    return 1.0 / (1.0 + ratios)


def normalised_probability(correct_log_prob_B: Tensor, wrong_log_prob_BK: Tensor) -> Tensor:
    r"""Share of the right answer in the probability of all options.

    .. math::
        \frac{p(a \mid q)^{1/|a|}}{p(a \mid q)^{1/|a|} + \sum_k p(\hat a_k \mid q)^{1/|\hat a_k|}}

    Lies in ``[0, 1]``; ``1 / (K + 1)`` when all options are alike. TOFU's probability on real authors and
    world facts; on forget and retain set it is ``p(a | q)^{1/|a|}`` itself.

    Args:
        correct_log_prob_B: Float ``(B,)``; ``log p / length`` of the right answer, at most 0.
        wrong_log_prob_BK: Float ``(B, K)``; the same of each wrong answer.

    Returns:
        Float64 ``(B,)``, one share for each question; the metric is their mean.

    Raises:
        ValueError: If shapes disagree, there is no wrong answer, or a log-probability is positive or not
            finite.

    References:
        Maini et al., COLM 2024. Deviation: OpenUnlearning adds 1e-10 to the denominator.
    """
    _require_log_probs(correct_log_prob_B, wrong_log_prob_BK)
    options = torch.cat([correct_log_prob_B.unsqueeze(1), wrong_log_prob_BK], dim=1).double()
    return torch.softmax(options, dim=1)[:, 0]


def model_utility(parts: Mapping[str, float]) -> float:
    """What the model still knows: harmonic mean of nine numbers.

    Lies in ``[0, 1]``; 0 as soon as one part is 0.

    Args:
        parts: ``retain_probability``, ``retain_rouge``, ``retain_truth_ratio``, and the same for
            ``real_authors`` and ``world_facts``; each a mean over the rows of its set. Probability is
            :func:`core.metrics.memorization.answer_probability` on the retain set and
            :func:`normalised_probability` on the others, ROUGE is ROUGE-L recall, the truth ratio is
            :func:`utility_truth_score`.

    Returns:
        Harmonic mean of the nine.

    Raises:
        ValueError: If a part is missing or unknown, or lies outside ``[0, 1]``; every problem is named.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024.
    """
    problems = [f"{name} is missing" for name in UTILITY_PARTS if name not in parts]
    problems += [f"{name} is unknown" for name in parts if name not in UTILITY_PARTS]
    problems += [
        f"{name} must lie in [0, 1], got {parts[name]}"
        for name in UTILITY_PARTS
        if name in parts and not 0.0 <= parts[name] <= 1.0
    ]
    if problems:
        raise ValueError(f"model utility: {'; '.join(problems)}")
    return harmonic_mean([parts[name] for name in UTILITY_PARTS])


def forget_quality(unlearned_ratios: Tensor, retain_only_ratios: Tensor) -> ForgetQuality:
    """Could the unlearned model's truth ratios on the forget set be a retain-only model's?

    Two-sample, two-sided Kolmogorov-Smirnov test; the p-value is exact up to 10,000 rows a side. The test
    sees only the order of the ratios, so R and 1/R give the same.

    Args:
        unlearned_ratios: Float ``(B,)``, :func:`truth_ratio` of the forget set under the unlearned model.
        retain_only_ratios: The same, with the same mean, under a model that never saw the forget set. The
            numbers of rows may differ.

    Returns:
        p-value, statistic and clipped log of the p-value; see there which of them may be an objective.

    Raises:
        ValueError: If a set is not one-dimensional, is empty, or holds a negative ratio or NaN.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024, whose forget quality is
        the p-value (its logarithm in the figures); computed by ``scipy.stats.ks_2samp``.
    """
    from scipy.stats import ks_2samp

    for name, ratios in (
        ("unlearned_ratios", unlearned_ratios),
        ("retain_only_ratios", retain_only_ratios),
    ):
        if ratios.ndim != 1 or ratios.numel() == 0:
            raise ValueError(f"{name} must be (n,) with n >= 1, got {tuple(ratios.shape)}")
        _require_ratios(name, ratios)
    with warnings.catch_warnings():
        # rounding may lift an exact p-value of 1 above 1; scipy then takes the asymptotic one, 1 as well
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation", RuntimeWarning)
        test = ks_2samp(
            unlearned_ratios.detach().cpu().double().numpy(),
            retain_only_ratios.detach().cpu().double().numpy(),
        )
    p_value = float(test.pvalue)
    log10_p = math.log10(p_value) if p_value > 0.0 else -math.inf
    return ForgetQuality(
        p_value=p_value, statistic=float(test.statistic), log10_p=max(LOG10_P_FLOOR, log10_p)
    )


def tolerated_distance(n_rows: int, *, level: float = 0.05) -> float:
    """The largest statistic of :func:`forget_quality` that still passes for no difference.

    Args:
        n_rows: Rows a side.
        level: p-values above it pass.

    Returns:
        D in ``(0, 1]``; 1 where even separate sets pass, as of 3 rows and fewer. About 1.36 times the square root of
        2 / n for many rows.

    Raises:
        ValueError: If there is no row.
    """
    if n_rows < 1:
        raise ValueError(f"n_rows must be at least 1, got {n_rows}")
    ranks = torch.arange(n_rows, dtype=torch.float64)
    # moved by k - 1/2 places, the ranks have D = k / n to those that stay
    passing = (
        k for k in range(n_rows, 1, -1) if forget_quality(ranks, ranks + k - 0.5).p_value > level
    )
    return next(passing, 1) / n_rows


def _require_log_probs(right_B: Tensor, wrong_BK: Tensor) -> None:
    if right_B.ndim != 1 or wrong_BK.ndim != 2 or len(right_B) != len(wrong_BK):
        raise ValueError(
            "the right answer (B,) and the wrong answers (B, K) must agree, "
            f"got {tuple(right_B.shape)} and {tuple(wrong_BK.shape)}"
        )
    if wrong_BK.shape[1] == 0:
        raise ValueError("each question needs a wrong answer, got none")
    for name, values in (("right", right_B), ("wrong", wrong_BK)):
        if not bool(torch.isfinite(values).all()) or bool((values > 0.0).any()):
            raise ValueError(
                f"log-probabilities of {name} answers must be finite and at most 0, "
                f"got {values.min().item()} to {values.max().item()}"
            )


def _require_ratios(name: str, ratios: Tensor) -> None:
    if not bool((ratios >= 0.0).all()):
        raise ValueError(f"{name} must not be negative or NaN, got {ratios.min().item()}")
