"""Models, data and inputs that suites are run on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import sentences

from core.config import EngineConfig, FieldNames
from core.data.tokens import TokenRow
from core.model.layers import vocabulary_size
from core.model.loading import LoadedModel
from core.suites import SUITES, EvaluationData, EvaluationRows, Subject, SuiteInput
from core.suites.suite import Findings

QUESTIONS = FieldNames(prompt="question", answer="answer")
ENGINE = EngineConfig(dtype="fp32", device="cpu")
END = 0
"""End of text of the tiny tokenizer."""


def pairs(seed: int, count: int) -> list[dict[str, Any]]:
    """Questions in the shape of TOFU; all texts of unequal length."""
    said, asked, wrong = (sentences(seed + i, 4 * count) for i in range(3))
    return [
        {
            "question": f"what is {asked[i]}",
            "answer": said[i],
            "paraphrased_question": f"say {asked[count + i]}",
            "paraphrased_answer": said[count + i],
            "perturbed_answer": [wrong[3 * i + k] for k in range(3)],
        }
        for i in range(count)
    ]


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def moved(model: LoadedModel, *, by: float, seed: int) -> LoadedModel:
    """The model itself, after a random step of its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=by)
    return model


def input_of(
    model: LoadedModel,
    data: EvaluationData,
    *,
    batch_size: int = 3,
    limit: int | None = None,
    **rest: Any,
) -> SuiteInput:
    """A given of one model on some data, as the verb ``evaluate`` makes one."""
    material = EvaluationRows(
        data, model.tokenizer, vocabulary=vocabulary_size(model.network), limit=limit
    )
    return SuiteInput(subject_of(model, batch_size), material, limit=limit, **rest)


def subject_of(model: LoadedModel, batch_size: int = 3) -> Subject:
    """The model as suites see it."""
    return Subject(model, name="tiny", batch_size=batch_size)


def run(name: str, given: SuiteInput) -> Findings:
    """What a suite finds."""
    return SUITES[name].run(given)


def tokens(given: SuiteInput, role: str) -> list[TokenRow]:
    """The rows of a role."""
    return [example.tokens for example in given.rows.examples(role)]
