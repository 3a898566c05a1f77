"""Suite ``probes``: how well every set is predicted, as during a trial."""

from collections.abc import Sequence

import numpy as np

from core.metrics.probes import Level, level
from core.suites.evaluation_rows import Example
from core.suites.subject import Subject
from core.suites.suite import Findings, Sample, SuiteInput, samples_of


def probes(given: SuiteInput) -> Findings:
    """Cross-entropy, perplexity and next-token accuracy of every role.

    As in a trial, each is a mean over the counted tokens of all rows together; samples hold the means of
    single rows.
    """
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    for role in given.rows.roles:
        examples = given.rows.examples(role)
        at = pooled_level(given.subject, examples)
        metrics |= {
            f"{role}_nll": at.nll,
            f"{role}_perplexity": at.perplexity,
            f"{role}_accuracy": at.accuracy,
        }
        read = given.subject.read([e.tokens for e in examples], ("nll", "exact_memorization"))
        columns = {"nll": read["nll"], "accuracy": read["exact_memorization"]}
        samples += samples_of(role, columns | {"n_tokens": [e.tokens.n_counted for e in examples]})
    return Findings(metrics=metrics, samples=samples)


def pooled_level(subject: Subject, examples: Sequence[Example]) -> Level:
    """Level of a set: means over all its counted tokens, not over rows."""
    read = subject.read([e.tokens for e in examples], ("nll", "exact_memorization"))
    counts = np.array([e.tokens.n_counted for e in examples], dtype=np.float64)
    nll, correct = (np.array(read[name]) * counts for name in ("nll", "exact_memorization"))
    return level(np.stack([nll, correct, counts], axis=1))
