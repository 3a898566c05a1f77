"""Cheap metrics of a trial: cross-entropy and next-token accuracy of each set, and what follows from them.

Every level is a mean over the counted tokens of all rows of a set together, not a mean of per-row means.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core.losses.alignment import counted_logits, counted_tokens, row_sums
from core.losses.picked import log_probabilities
from core.measuring.scale import MIN_GAP_NATS
from core.metrics.intervals import Sums

MEASURED = ("forget", "retain", "general")
"""Sets whose level is measured at each probe; the approximate set's is measured once, on the target model."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """How well a model predicts a set.

    Attributes:
        nll: Cross-entropy, nats per token.
        accuracy: Share of tokens that are the greedy choice given the true prefix.
    """

    nll: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """``exp(nll)``; infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


Levels = Mapping[str, Level]
"""Level of each set."""


def token_sums(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Float64 ``(B, 3)``: summed negative log-likelihood (nats), correct greedy choices, counted tokens of each row.

    Raises:
        ValueError: As :func:`~core.losses.align`, or if a row has no counted token.
    """
    logits_NV, targets_N = counted_logits(logits_BTV, labels_BT)
    nll_N = -log_probabilities(logits_NV, targets_N.unsqueeze(-1)).squeeze(-1)
    correct_N = logits_NV.max(dim=-1).indices == targets_N
    values_N3 = torch.stack(
        [nll_N.double(), correct_N.double(), torch.ones_like(nll_N).double()], 1
    )
    return row_sums(values_N3, counted_tokens(labels_BT))


def level(sums_N3: Sums) -> Level:
    """Level from :func:`token_sums` of all rows of a set: a mean over its tokens, not over its rows."""
    nll, correct, count = sums_N3.sum(axis=0).tolist()
    return Level(nll=nll / count, accuracy=correct / count)


def forget_closure(now: float, before: float, target: float) -> float:
    r"""How much of the way from the untouched model to the target is closed.

    .. math::
        1 - \frac{|f - f^*|}{|f_0 - f^*|}, \text{ clipped to } [-1, 1]

    1 when the forget set looks like text that was never seen; 0 as before; it falls again, and below 0,
    when the set is over-unlearned, so that collapse is not rewarded.

    Args:
        now: f, the forget set's level under the model being unlearned.
        before: f0, under the target model.
        target: f*, the approximate set's level under the target model, or the forget set's under a
            retain-only model.

    Returns:
        A number in [-1, 1]; NaN if ``now`` is not finite.

    Raises:
        ValueError: If ``before`` equals ``target``.
    """
    if before == target:
        raise ValueError(f"before and target must differ, got {before} for both")
    if not math.isfinite(now):
        return math.nan
    return max(-1.0, min(1.0, 1.0 - abs(now - target) / abs(before - target)))


def retain_forgetting(now: float, before: float, unseen: float) -> float | None:
    r"""Share of its advantage over unseen text of its kind that retained text has lost.

    .. math::
        \frac{r - r_0}{u - r_0}

    0 as before; 1 when retained text is predicted like text that was never seen; below 0 when it is predicted
    better than before. On a model that has its retain set by heart this is the scale of forgetting itself.

    Args:
        now: r, the retain set's level under the model being unlearned.
        before: r0, under the target model.
        unseen: u, the approximate set's level under the target model, or under a retain-only model; without an
            approximate set the forget set's under the latter.

    Returns:
        The share; NaN if ``now`` is not finite; ``None`` if ``unseen`` lies less than
        :data:`~core.measuring.scale.MIN_GAP_NATS` above ``before``, where there is nothing to take a share of.
    """
    if unseen - before < MIN_GAP_NATS:
        return None
    return (now - before) / (unseen - before) if math.isfinite(now) else math.nan


def degradation(levels: Mapping[str, Level], baseline: Mapping[str, Level]) -> dict[str, float]:
    """Metrics of a probe, relative to the untouched model.

    Args:
        levels: Level of ``forget``, ``retain`` and ``general`` now.
        baseline: The same under the target model; ``target``, the level that forgetting aims at; and
            ``unseen``, that of text of the retain set's kind that the model never saw.

    Returns:
        For each set ``*_nll`` (nats per token), ``*_perplexity`` and ``*_accuracy``; ``retain_drop`` and
        ``general_drop`` (nats per token, positive when the model got worse); ``*_accuracy_drop``;
        ``retain_forgetting``, where the retain set has an advantage over unseen text;
        ``retain_utility`` (accuracy now / before); ``forget_closure`` on cross-entropy and
        ``accuracy_closure`` on accuracy; ``accuracy_gap`` (forget accuracy now minus the
        target's).
    """
    metrics: dict[str, float] = {}
    for name in MEASURED:
        metrics[f"{name}_nll"] = levels[name].nll
        metrics[f"{name}_perplexity"] = levels[name].perplexity
        metrics[f"{name}_accuracy"] = levels[name].accuracy
    for name in ("retain", "general"):
        metrics[f"{name}_drop"] = levels[name].nll - baseline[name].nll
        metrics[f"{name}_accuracy_drop"] = baseline[name].accuracy - levels[name].accuracy
    share = retain_forgetting(levels["retain"].nll, baseline["retain"].nll, baseline["unseen"].nll)
    if share is not None:
        metrics["retain_forgetting"] = share
    before = baseline["retain"].accuracy
    metrics["retain_utility"] = levels["retain"].accuracy / before if before else math.nan
    forget, target = baseline["forget"], baseline["target"]
    metrics["forget_closure"] = forget_closure(levels["forget"].nll, forget.nll, target.nll)
    metrics["accuracy_closure"] = (
        forget_closure(levels["forget"].accuracy, forget.accuracy, target.accuracy)
        if math.isfinite(levels["forget"].nll) and forget.accuracy != target.accuracy
        else math.nan
    )
    metrics["accuracy_gap"] = levels["forget"].accuracy - target.accuracy
    return metrics
