"""Suite ``muse``: verbatim memorisation, knowledge memorisation and privacy leakage."""

from core.metrics.memorization import rouge_l
from core.suites.mia_suite import attack_scores, aucs, privleak_or_nan, retain_only_auc
from core.suites.suite import Findings, Sample, SuiteInput, mean, samples_of

VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32
QUESTION_STOPS = ("\n\n", "\nQuestion", "Question:")
"""What ends an answer beside the end of text: OpenUnlearning's stop words."""


def muse(given: SuiteInput) -> Findings:
    """MUSE's metrics: ``verbmem_f``, ``knowmem_f``, ``knowmem_r`` and ``privleak``.

    Memorisation is the mean over rows of ROUGE-L F1 between the truth and what the model writes greedily:
    128 tokens after a beginning (role ``verbatim``), or after the first half of a forget text, against as
    many true ones; 32 tokens after a question. PrivLeak compares the Min-40 % AUC of forget and holdout
    set with the retain-only model's, or with 0.5.

    Deviations from the released code: questions stand alone, without its examples of answered questions;
    the wording around them is ``prompt_format`` and ``plain_template`` of the data file.
    """
    verbatim = "verbatim" if given.has("verbatim") else "forget"
    found = {
        "verbmem_f": (verbatim, _f1(given, verbatim, VERBATIM_TOKENS, ())),
        "knowmem_f": ("forget_qa", _f1(given, "forget_qa", KNOWLEDGE_TOKENS, QUESTION_STOPS)),
        "knowmem_r": ("retain_qa", _f1(given, "retain_qa", KNOWLEDGE_TOKENS, QUESTION_STOPS)),
    }
    metrics = {name: mean(values) for name, (_, values) in found.items()}
    samples: list[Sample] = []
    for name, (role, values) in found.items():
        samples += samples_of(role, {"metric": [name] * len(values), "rouge_l_f1": values})
    forget, holdout = (given.rows.examples(role) for role in ("forget", "holdout"))
    scores = [attack_scores(given.subject, examples) for examples in (forget, holdout)]
    unseen, note = retain_only_auc(given, forget, holdout)
    metrics["min_k_auc"] = aucs(*scores)["min_k"]
    metrics["privleak"] = privleak_or_nan(metrics["min_k_auc"], unseen.get("min_k", 0.5))
    for role, columns in zip(("forget", "holdout"), scores, strict=True):
        samples += samples_of(
            role, {"metric": ["privleak"] * len(columns["min_k"]), "min_k": columns["min_k"]}
        )
    return Findings(metrics=metrics, samples=samples, notes=(note,))


def _f1(given: SuiteInput, role: str, tokens: int, stops: tuple[str, ...]) -> list[float]:
    written = given.subject.continuations(
        given.rows.examples(role), answer_tokens=tokens, document_tokens=tokens, stops=stops
    )
    return [rouge_l(c.written, c.truth).f1 for c in written]
