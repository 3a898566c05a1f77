"""Suite ``fluency``: is what the model writes still language?"""

from collections.abc import Sequence

from core.metrics.composites import ngram_entropy
from core.model.loading import load_classifier
from core.suites.evaluation_rows import Example
from core.suites.subject import Subject
from core.suites.suite import Findings, Sample, SuiteInput, mean, samples_of
from core.text.words import words_and_signs

_CLEAN = "clean"


def fluency(given: SuiteInput) -> Findings:
    """Entropy of the n-grams of greedy answers, and a classifier's verdict where one is named.

    Both are means over the rows of forget and retain set. Answers are what suite ``memorization`` compares
    with the truth. The classifier's number is the probability of its label ``clean``, or of its first label
    where none is named so, as in OpenUnlearning.
    """
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    for role in ("forget", "retain"):
        if not given.has(role):
            continue
        examples = given.rows.examples(role)
        columns: dict[str, list[float]] = {"ngram_entropy": ngrams_of(given.subject, examples)}
        if given.options.fluency_model is not None:
            columns["clean_probability"] = verdicts(given, given.subject, examples)
        metrics |= {f"{role}_{name}": mean(values) for name, values in columns.items()}
        samples += samples_of(role, columns)
    return Findings(metrics=metrics, samples=samples)


def fluency_of(
    given: SuiteInput, subject: Subject, examples: Sequence[Example]
) -> tuple[list[float], str]:
    """Fluency of each answer, and what it is: the classifier's verdict where one is named, else n-grams."""
    if given.options.fluency_model is None:
        return ngrams_of(subject, examples), "fluency is the n-gram entropy of answers"
    return verdicts(given, subject, examples), "fluency is the classifier's verdict on answers"


def ngrams_of(subject: Subject, examples: Sequence[Example]) -> list[float]:
    """Entropy of bigrams and trigrams of each answer, words and punctuation marks as tokens, in bits."""
    written = subject.continuations(examples)
    return [ngram_entropy(words_and_signs(c.written)) for c in written]


def verdicts(given: SuiteInput, subject: Subject, examples: Sequence[Example]) -> list[float]:
    """Probability that a text classifier gives to ``clean`` for each answer."""
    source = given.options.fluency_model
    assert source is not None
    classifier = load_classifier(source, subject.model.device)
    return classifier.probabilities([c.written for c in subject.continuations(examples)], _CLEAN)
