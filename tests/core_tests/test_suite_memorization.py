"""Suite memorization against naive loops of single rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from naive_suites import (
    average,
    close,
    forced_strength,
    greedy,
    hits,
    naive_answer,
    probability,
    text,
)
from suite_inputs import input_of, run, tokens, write_records

from core.config import SourceConfig
from core.data.tokens import TokenRow
from core.metrics.memorization import rouge_1_recall, rouge_l
from core.model.loading import LoadedModel
from core.suites import EvaluationData


def naive_strength(model: LoadedModel, row: TokenRow) -> float:
    first = max(1, row.n_context)
    answer = list(row.ids[first:])
    for k in range(len(answer) + 1):
        if greedy(model, row.ids[: first + k], len(answer) - k, end=None) == answer[k:]:
            return 1 - k / len(answer)
    raise AssertionError


def naive_likelihood(model: LoadedModel, ids: Sequence[int], n: int) -> float:
    total = 0.0
    for i in range(1, len(ids) - n + 1):
        suffix = list(ids[i:])
        made = greedy(model, ids[:i], len(suffix), end=None)
        grams = [tuple(suffix[k : k + n]) for k in range(len(suffix) - n + 1)]
        written = [tuple(made[k : k + n]) for k in range(len(made) - n + 1)]
        total += sum(g in grams for g in written) / len(grams)
    return total / (len(ids) - n)


def test_memorization_of_documents(noisy: LoadedModel, text_data: EvaluationData) -> None:
    given = input_of(noisy, text_data, limit=4)
    found = run("memorization", given)
    rows = tokens(given, "forget")
    long = [row for row in rows if len(row.ids) > 10]
    assert long
    close(
        found.metrics["forget_el_10"], average([naive_likelihood(noisy, r.ids, 10) for r in long])
    )
    accuracy = average([average(hits(noisy, r)) for r in rows])
    close(found.metrics["forget_memorization_accuracy"], accuracy)
    close(found.metrics["forget_exact_memorization"], accuracy)
    close(
        found.metrics["forget_extraction_strength"],
        average([naive_strength(noisy, r) for r in rows]),
    )
    close(found.metrics["forget_probability"], average([probability(noisy, r) for r in rows]))
    scores = []
    for row in rows:
        half = len(row.ids) // 2
        written = text(noisy, greedy(noisy, row.ids[:half], len(row.ids) - half)).strip()
        truth = text(noisy, row.ids[half:])
        scores.append((rouge_l(written, truth), rouge_1_recall(written, truth)))
    close(found.metrics["forget_rouge_l_recall"], average([s.recall for s, _ in scores]))
    close(found.metrics["forget_rouge_l_f1"], average([s.f1 for s, _ in scores]))
    close(found.metrics["forget_rouge_1_recall"], average([r for _, r in scores]))
    assert [s["set"] for s in found.samples] == ["forget"] * 4 + ["holdout"] * 4


def test_memorised_text_stands_out_from_the_holdout_set(
    model: LoadedModel, text_data: EvaluationData
) -> None:
    found = run("memorization", input_of(model, text_data, limit=4)).metrics
    for name, by in (("el_10", 0.02), ("memorization_accuracy", 0.4), ("probability", 0.3)):
        assert found[f"forget_{name}"] > found[f"holdout_{name}"] + by


def test_memorization_of_answers(model: LoadedModel, question_data: EvaluationData) -> None:
    given = input_of(model, question_data, limit=2)
    found = run("memorization", given)
    examples = given.rows.examples("forget")
    rows = [e.tokens for e in examples]
    assert all(row.n_context > 1 for row in rows)
    whole = [TokenRow(row.ids, 0) for row in rows]
    close(
        found.metrics["forget_memorization_accuracy"],
        average([average(hits(model, r)) for r in whole]),
    )
    close(
        found.metrics["forget_exact_memorization"], average([average(hits(model, r)) for r in rows])
    )
    close(
        found.metrics["forget_extraction_strength"],
        average([forced_strength(model, r) for r in rows]),
    )
    recall = [
        rouge_l(naive_answer(model, example.tokens), example.answer).recall for example in examples
    ]
    assert [s["rouge_l_recall"] for s in found.samples[:2]] == pytest.approx(recall)


def test_a_set_of_short_rows_has_no_extraction_likelihood(
    model: LoadedModel, tmp_path: Path
) -> None:
    path = write_records(tmp_path / "short.jsonl", [{"text": "river"}, {"text": "lamp"}])
    data = EvaluationData(forget=SourceConfig(source=str(path)))
    found = run("memorization", input_of(model, data))
    assert math.isnan(found.metrics["forget_el_10"])
    assert found.notes == ("forget_el_10: no row has more than 10 tokens",)
    assert math.isfinite(found.metrics["forget_extraction_strength"])
