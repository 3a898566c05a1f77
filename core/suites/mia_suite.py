"""Suite ``mia``: can membership attacks tell the forget set from text that was never seen?"""

import math
from collections.abc import Mapping, Sequence

import torch

from core.data.tokens import TokenRow
from core.metrics.composites import relative_difference
from core.metrics.memorization import answer_nll
from core.metrics.privacy import auc, grad_norm_score, privleak, reference_score, zlib_score
from core.metrics.rows import MIN_K_SHARES
from core.suites.evaluation_rows import Example
from core.suites.subject import Subject
from core.suites.suite import Findings, Sample, SuiteInput, samples_of

MIN_K = "min_k_0.4"
"""The share that OpenUnlearning and MUSE use; ``min_k`` without a number."""

_READ = ("loss", "min_k_plus_plus", *(f"min_k_{k}" for k in MIN_K_SHARES))


def mia(given: SuiteInput) -> Findings:
    """AUC of each attack, and PrivLeak.

    An AUC is the chance that a forget row looks more like a member than a holdout row, not folded: 1 when
    the forget set is still known, about 0.5 for a retrained model, below when it is over-unlearned. Every
    score is high for rows that look unseen; it is one number a row.
    """
    forget, holdout = (given.rows.examples(role) for role in ("forget", "holdout"))
    scores = {
        "forget": attack_scores(given.subject, forget),
        "holdout": attack_scores(given.subject, holdout),
    }
    for role, examples in (("forget", forget), ("holdout", holdout)):
        scores[role]["grad_norm"] = grad_norms(given.subject, [e.tokens for e in examples])
    notes = [_add_reference(given, scores, forget, holdout)]
    found = aucs(scores["forget"], scores["holdout"])
    metrics = {f"{name}_auc": value for name, value in found.items()}
    unseen, note = retain_only_auc(given, forget, holdout)
    metrics |= {f"retain_only_{name}_auc": value for name, value in unseen.items()}
    metrics["privleak"] = privleak_or_nan(found["min_k"], unseen.get("min_k", 0.5))
    if unseen:
        metrics["min_k_auc_difference"] = difference_or_nan(found["min_k"], unseen["min_k"])
    samples: list[Sample] = []
    for role, columns in scores.items():
        samples += samples_of(role, columns)
    return Findings(metrics=metrics, samples=samples, notes=(*filter(None, notes), note))


def attack_scores(subject: Subject, examples: Sequence[Example]) -> dict[str, list[float]]:
    """Scores of one forward pass: loss, zlib, Min-K% and Min-K%++ of each row."""
    read = subject.read([example.tokens for example in examples], _READ)
    texts = [subject.decoded(example.counted_ids) for example in examples]
    return {
        "loss": read["loss"],
        "zlib": zlib_score(torch.tensor(read["loss"]), texts).tolist(),
        "min_k": read[MIN_K],
        **{name: read[name] for name in _READ if name.startswith("min_k") and name != MIN_K},
    }


def aucs(
    forget: Mapping[str, Sequence[float]], holdout: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """AUC of each attack; NaN where a score is no number."""
    return {
        name: auc(torch.tensor(forget[name]), torch.tensor(holdout[name]))
        if all(map(math.isfinite, (*forget[name], *holdout[name])))
        else math.nan
        for name in forget
    }


def retain_only_auc(
    given: SuiteInput, forget: Sequence[Example], holdout: Sequence[Example]
) -> tuple[dict[str, float], str]:
    """AUC of each attack on the retain-only model, where there is one, and what PrivLeak compares with."""
    other = given.retain_only
    if other is None:
        return {}, "privleak: no retain-only model is given, so its Min-40 % AUC is taken to be 0.5"
    unseen = aucs(attack_scores(other, forget), attack_scores(other, holdout))
    return unseen, f"privleak: compared with the retain-only model {other.name}"


def privleak_or_nan(auc_unlearned: float, auc_retain: float) -> float:
    """PrivLeak; NaN where an AUC is no number, or the retain-only model's is 1."""
    if math.isnan(auc_unlearned) or math.isnan(auc_retain) or auc_retain == 1.0:
        return math.nan
    return privleak(auc_unlearned, auc_retain)


def difference_or_nan(auc_unlearned: float, auc_retain: float) -> float:
    """Per cent by which an AUC differs from the retain-only model's; NaN where one is no number or that is 0."""
    if math.isnan(auc_unlearned) or math.isnan(auc_retain) or auc_retain == 0.0:
        return math.nan
    return relative_difference(auc_unlearned, auc_retain)


def grad_norms(subject: Subject, rows: Sequence[TokenRow]) -> list[float]:
    """Mean norm of the weights' gradients of each row's mean cross-entropy.

    The weights of the model itself count, an adapter's do not: their gradients are those of a model with
    the adapter merged into it.
    """
    weights = [w for n, w in subject.network.named_parameters() if "lora_" not in n]
    before = [weight.requires_grad for weight in weights]
    found = [math.nan] * len(rows)
    try:
        for weight in weights:
            weight.requires_grad_(weight.is_floating_point())
        for chosen, batch in subject.batches(rows, size=1):
            logits_BTV = subject.logits(batch)
            gradients = torch.autograd.grad(
                answer_nll(logits_BTV, batch.labels).sum(), weights, allow_unused=True
            )
            found[chosen[0]] = float(grad_norm_score([g for g in gradients if g is not None]))
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
    return found


def _add_reference(
    given: SuiteInput,
    scores: Mapping[str, dict[str, list[float]]],
    forget: Sequence[Example],
    holdout: Sequence[Example],
) -> str:
    """Add the reference attack where there is a model to compare with, and say which."""
    other = given.retain_only or given.initial
    if other is None:
        return ""
    for role, examples in (("forget", forget), ("holdout", holdout)):
        reference = other.read([example.tokens for example in examples], ("loss",))["loss"]
        scores[role]["reference"] = reference_score(
            torch.tensor(scores[role]["loss"]), torch.tensor(reference)
        ).tolist()
    which = "retain-only model" if other is given.retain_only else "model before unlearning"
    return f"reference_auc: the reference is the {which}, {other.name}"
