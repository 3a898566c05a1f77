"""Suite ``memorization``: how much of the forget set is known by heart."""

import math

from core.metrics.memorization import rouge_1_recall, rouge_l
from core.suites.suite import Findings, Sample, SuiteInput, mean, mean_of_known, samples_of

EXTRACTED_NGRAM = 10
"""Length of the n-grams of extraction likelihood, as in Jang et al."""

_LOGITS = ("memorization_accuracy", "extraction_strength", "exact_memorization", "probability")


def memorization(given: SuiteInput) -> Findings:
    """Extraction likelihood and strength, MA, EM, answer probability and ROUGE of the forget set.

    All are means over rows. The holdout set, where there is one, is the comparison: text of the same kind
    that was never seen. Extraction likelihood and MA read every token but the first, as Jang et al. do; the
    others the answer. ROUGE compares what the model writes greedily: after a prompt at most 200 tokens
    against the answer; after the first half of a document's tokens as many as its second half has. EL_10
    is a mean over the rows of more than 10 tokens.
    """
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    notes: list[str] = []
    for role in ("forget", "holdout"):
        if not given.has(role):
            continue
        columns = _columns(given, role)
        for name, values in columns.items():
            average = mean_of_known if name.startswith("el_") else mean
            metrics[f"{role}_{name}"] = average(values)
        if all(math.isnan(value) for value in columns[f"el_{EXTRACTED_NGRAM}"]):
            notes.append(
                f"{role}_el_{EXTRACTED_NGRAM}: no row has more than {EXTRACTED_NGRAM} tokens"
            )
        samples += samples_of(role, columns)
    return Findings(metrics=metrics, samples=samples, notes=tuple(notes))


def _columns(given: SuiteInput, role: str) -> dict[str, list[float]]:
    subject, examples = given.subject, given.rows.examples(role)
    rows = [example.tokens for example in examples]
    written = subject.continuations(examples)
    scores = [rouge_l(c.written, c.truth) for c in written]
    return {
        f"el_{EXTRACTED_NGRAM}": subject.extraction_likelihoods(rows, n=EXTRACTED_NGRAM),
        **subject.read(rows, _LOGITS),
        "rouge_l_recall": [score.recall for score in scores],
        "rouge_l_f1": [score.f1 for score in scores],
        "rouge_1_recall": [rouge_1_recall(c.written, c.truth) for c in written],
    }
