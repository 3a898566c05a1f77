"""Metrics: cheap probes during a trial, and what the suites are made of. Functions of tensors and numbers."""

from core.metrics.composites import aggregate_score, harmonic_mean, ngram_entropy
from core.metrics.memorization import (
    answer_probability,
    exact_memorization,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    rouge_1_recall,
    rouge_l,
)
from core.metrics.privacy import (
    auc,
    grad_norm_score,
    loss_score,
    min_k,
    min_k_plus_plus,
    privleak,
    reference_score,
    zlib_score,
)
from core.metrics.probes import Level, degradation, forget_closure
from core.metrics.tofu import (
    forget_quality,
    model_utility,
    normalised_probability,
    truth_ratio,
)

__all__ = [
    "Level",
    "aggregate_score",
    "answer_probability",
    "auc",
    "degradation",
    "exact_memorization",
    "extraction_likelihood",
    "extraction_strength",
    "forget_closure",
    "forget_quality",
    "grad_norm_score",
    "harmonic_mean",
    "loss_score",
    "memorization_accuracy",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "ngram_entropy",
    "normalised_probability",
    "privleak",
    "reference_score",
    "rouge_1_recall",
    "rouge_l",
    "truth_ratio",
    "zlib_score",
]
