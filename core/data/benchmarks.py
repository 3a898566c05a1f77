"""Published data sets by name: ``tofu:forget10`` instead of repository, subset, split and field names."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from core.config import FieldNames

Shape = Literal["fields", "choices"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where a published set lies on the hub and which fields hold its text.

    ``shape``: ``fields`` is text, or prompt and answer, as they stand; ``choices`` is a question with
    numbered choices, written out by :func:`core.data.rows.written_out`.
    """

    repository: str
    subset: str | None
    split: str
    fields: FieldNames
    shape: Shape = "fields"


_TEXT = FieldNames(text="text")
_QUESTION = FieldNames(prompt="question", answer="answer")
_VERBATIM = FieldNames(prompt="prompt", answer="gt")

_TOFU_SUBSETS = (
    *("full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99"),
    *("holdout01", "holdout05", "holdout10", "real_authors", "world_facts"),
    *("forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed"),
    *("real_authors_perturbed", "world_facts_perturbed"),
)
_MUSE_PARTS: Mapping[str, tuple[str, str, FieldNames]] = {
    "forget": ("raw", "forget", _TEXT),
    "retain1": ("raw", "retain1", _TEXT),
    "retain2": ("raw", "retain2", _TEXT),
    "holdout": ("raw", "holdout", _TEXT),
    "knowmem-forget": ("knowmem", "forget_qa", _QUESTION),
    "knowmem-retain": ("knowmem", "retain_qa", _QUESTION),
    "verbmem": ("verbmem", "forget", _VERBATIM),
    "privleak-forget": ("privleak", "forget", _TEXT),
    "privleak-retain": ("privleak", "retain", _TEXT),
    "privleak-holdout": ("privleak", "holdout", _TEXT),
}
_YAO_PARTS: Mapping[str, tuple[str, ...]] = {
    "arxiv": ("forget", "approximate", "retain"),
    "github": ("forget", "approximate", "retain"),
    "general": ("evaluation", "retain"),
}

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        f"tofu:{subset}": Benchmark(
            repository="locuslab/TOFU", subset=subset, split="train", fields=_QUESTION
        )
        for subset in _TOFU_SUBSETS
    }
    | {
        f"muse-{corpus.lower()}:{part}": Benchmark(
            repository=f"muse-bench/MUSE-{corpus}", subset=subset, split=split, fields=fields
        )
        for corpus in ("News", "Books")
        for part, (subset, split, fields) in _MUSE_PARTS.items()
    }
    | {
        f"wmdp:{subject}": Benchmark(
            repository="cais/wmdp",
            subset=f"wmdp-{subject}",
            split="test",
            fields=_QUESTION,
            shape="choices",
        )
        for subject in ("bio", "cyber", "chem")
    }
    | {
        f"wmdp-corpus:{part}": Benchmark(
            repository="cais/wmdp-corpora", subset=f"{part}-corpus", split="train", fields=_TEXT
        )
        for part in ("bio-retain", "cyber-forget", "cyber-retain")
    }
    | {
        f"yao:{domain}-{split}": Benchmark(
            repository="llmunlearn/unlearn_dataset", subset=domain, split=split, fields=_TEXT
        )
        for domain, splits in _YAO_PARTS.items()
        for split in splits
    }
)
"""Every name that ``source`` knows, with its place on the hub. Each is the publisher's own naming:

- ``tofu``: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024.
- ``muse-news``, ``muse-books``: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language
  Models", ICLR 2025.
- ``wmdp``, ``wmdp-corpus``: Li et al., "The WMDP Benchmark", ICML 2024. The biology forget corpus is given
  out on request only and so has no name here; as a file it is a source like any other.
- ``yao``: Yao et al., "Machine Unlearning of Pre-trained Large Language Models", ACL 2024. Its book sets
  were not released.
"""

AUTHOR_PARTS = ("forget", "retain", "holdout", "real_authors", "world_facts")
"""Parts of the shipped fictitious authors, ``authors:PART``, with the field names of TOFU."""

NAMED = frozenset(name.partition(":")[0] for name in BENCHMARKS) | {"authors"}
"""What may stand before the colon of a named source."""


def named_fields(name: str) -> FieldNames:
    """Fields of a named source, unless the user gives others."""
    return _QUESTION if name.startswith("authors:") else BENCHMARKS[name].fields


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a benchmark, with the nearest valid ones, or ``None``."""
    known = [*BENCHMARKS, *(f"authors:{part}" for part in AUTHOR_PARTS)]
    if name in known:
        return None
    family = name.partition(":")[0]
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(k for k in known if k.partition(":")[0] == family)
    return f"source: no data set {name!r}; {hint}known: {listed}"
