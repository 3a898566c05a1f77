"""Metric suites of a finished model: one literal mapping, each a function of a :class:`SuiteInput`."""

from collections.abc import Mapping
from types import MappingProxyType

from core.config.evaluation import EvaluationData, parse_data
from core.suites.audits import paraphrase, quantisation, relearning
from core.suites.evaluation_rows import EvaluationRows, Example
from core.suites.fluency_suite import fluency
from core.suites.memorization_suite import memorization
from core.suites.mia_suite import mia
from core.suites.muse_suite import muse
from core.suites.pace import Pace
from core.suites.probes_suite import probes
from core.suites.subject import Subject
from core.suites.suite import AuditOptions, Findings, Suite, SuiteInput
from core.suites.tofu_suite import UTILITY_ROLES, tofu, utility
from core.suites.wmdp_suite import SUBJECTS, mmlu, wmdp

_AUTHORS: Mapping[str, str] = MappingProxyType(
    {
        part: f"authors:{part}"
        for part in ("forget", "retain", "holdout", "real_authors", "world_facts")
    }
)

SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "probes": Suite(
            run=probes, about="cross-entropy, perplexity and next-token accuracy of every role"
        ),
        "memorization": Suite(
            run=memorization,
            about="EL_10, MA, extraction strength, EM, answer probability, ROUGE",
            roles=("forget",),
        ),
        "mia": Suite(
            run=mia,
            about="AUC of membership attacks on forget and holdout set, PrivLeak",
            roles=("forget", "holdout"),
        ),
        "tofu": Suite(
            run=tofu,
            about="TOFU's metrics, model utility, forget quality, OpenUnlearning's composites",
            roles=("forget", *UTILITY_ROLES),
            needs_retain_only=True,
            defaults=_AUTHORS,
        ),
        "utility": Suite(
            run=utility,
            about="TOFU's model utility and its nine numbers",
            roles=UTILITY_ROLES,
            defaults=_AUTHORS,
        ),
        "muse": Suite(
            run=muse,
            about="verbatim and knowledge memorisation, PrivLeak",
            roles=("forget", "holdout", "forget_qa", "retain_qa"),
        ),
        "wmdp": Suite(
            run=wmdp,
            about="accuracy on multiple-choice questions of hazardous knowledge",
            one_of=tuple(SUBJECTS),
            defaults={role: role.replace("_", ":") for role in SUBJECTS},
        ),
        "mmlu": Suite(run=mmlu, about="MMLU by lm-eval, if that package is installed"),
        "fluency": Suite(
            run=fluency,
            about="n-gram entropy of answers, a classifier's verdict",
            roles=("forget",),
        ),
        "relearning": Suite(
            run=relearning,
            about="audit: what training on a few forget rows brings back of the others",
            roles=("forget",),
        ),
        "quantisation": Suite(
            run=quantisation,
            about="audit: what rounding the weights to 8 and 4 bits brings back",
            roles=("forget", "retain"),
        ),
        "paraphrase": Suite(
            run=paraphrase,
            about="audit: probability and ROUGE of paraphrased questions and answers",
            roles=("forget",),
            defaults=_AUTHORS,
        ),
    }
)
"""Every suite by name."""

__all__ = [
    "SUITES",
    "AuditOptions",
    "EvaluationData",
    "EvaluationRows",
    "Example",
    "Findings",
    "Pace",
    "Subject",
    "Suite",
    "SuiteInput",
    "parse_data",
]
