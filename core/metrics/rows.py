"""Metrics of single rows by name: one table for stop rules during a trial and for the suites afterwards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from core.metrics.memorization import (
    answer_nll,
    answer_probability,
    exact_memorization,
    extraction_strength,
    memorization_accuracy,
)
from core.metrics.privacy import loss_score, min_k, min_k_plus_plus

MIN_K_SHARES = (0.3, 0.4, 0.5, 0.6, 1.0)
"""Shares of lowest tokens: 0.4 is OpenUnlearning's and MUSE's, the grid is that of Yao et al., ACL 2024."""


@dataclass(frozen=True, kw_only=True)
class RowMetric:
    """A metric of single rows.

    Attributes:
        compute: From logits ``(B, T, V)`` and labels ``(B, T)``: ``(B,)``.
        counts: Which tokens the labels hold: those of the ``answer``, or of the whole ``text``, the context
            included; a first token, which nothing predicts, never counts.
    """

    compute: Callable[[Tensor, Tensor], Tensor]
    counts: Literal["answer", "text"] = "answer"


ROW_METRICS: Mapping[str, RowMetric] = {
    "nll": RowMetric(compute=answer_nll),
    "loss": RowMetric(compute=loss_score),
    "probability": RowMetric(compute=answer_probability),
    "exact_memorization": RowMetric(compute=exact_memorization),
    "extraction_strength": RowMetric(compute=extraction_strength),
    # Jang et al., ACL 2023, count every token but the first; published stop levels refer to that
    "memorization_accuracy": RowMetric(compute=memorization_accuracy, counts="text"),
    **{f"min_k_{k}": RowMetric(compute=partial(min_k, k=k)) for k in MIN_K_SHARES},
    "min_k_plus_plus": RowMetric(compute=min_k_plus_plus),
}
"""What one forward pass can say of a row. ``el_N`` is no such metric: it decodes."""
