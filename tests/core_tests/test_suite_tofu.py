"""Suites tofu and utility against naive loops of single rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_suites import (
    agree,
    average,
    forced_strength,
    hits,
    naive_answer,
    naive_fluency,
    naive_scores,
    pair_auc,
    probability,
)
from scipy.stats import ks_2samp
from suite_inputs import (
    END,
    ENGINE,
    QUESTIONS,
    input_of,
    pairs,
    run,
    subject_of,
    tokens,
    write_records,
)

from core.config import ModelConfig, SourceConfig
from core.data.batches import collate
from core.data.tokens import TokenRow
from core.errors import DataError
from core.metrics.composites import (
    ATTACKS,
    aggregate_score,
    harmonic_mean,
    memorization_score,
    privacy_score,
    utility_score,
)
from core.metrics.memorization import rouge_l
from core.model.loading import LoadedModel, load_model
from core.suites import EvaluationData, SuiteInput


def naive_tofu(model: LoadedModel, given: SuiteInput, role: str) -> dict[str, list[float]]:
    rows: list[dict[str, float]] = []
    for example in given.rows.examples(role):
        record = example.record

        def row(answer: str, question: str = record["question"]) -> TokenRow:
            ids = model.tokenizer(question)["input_ids"]
            return TokenRow((*ids, *model.tokenizer(f" {answer}")["input_ids"], END), len(ids))

        assert row(record["answer"]) == example.tokens
        is_choice = role in ("real_authors", "world_facts")
        right = probability(model, example.tokens)
        base = right if is_choice else probability(model, row(record["paraphrased_answer"]))
        wrong = [probability(model, row(answer)) for answer in record["perturbed_answer"]]
        geometric, arithmetic = math.prod(wrong) ** (1 / len(wrong)) / base, average(wrong) / base
        rows.append(
            {
                "probability": right / (right + sum(wrong)) if is_choice else right,
                "rouge_l_recall": rouge_l(
                    naive_answer(model, example.tokens), record["answer"]
                ).recall,
                "extraction_strength": forced_strength(model, example.tokens),
                "exact_memorization": average(hits(model, example.tokens)),
                "paraphrase_probability": base,
                "ratio_geometric": geometric,
                "forget_geometric": min(geometric, 1 / geometric),
                "forget_arithmetic": min(arithmetic, 1 / arithmetic),
                "utility_geometric": max(0.0, 1 - geometric),
                "utility_arithmetic": max(0.0, 1 - arithmetic),
                "preference": 1 / (1 + geometric),
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def naive_utility(model: LoadedModel, given: SuiteInput) -> dict[str, float]:
    found: dict[str, float] = {}
    nine: list[float] = []
    for role in ("retain", "real_authors", "world_facts"):
        naive = {name: average(values) for name, values in naive_tofu(model, given, role).items()}
        nine += [naive[name] for name in ("probability", "rouge_l_recall", "utility_geometric")]
        found |= {
            f"{role}_probability": naive["probability"],
            f"{role}_rouge_l_recall": naive["rouge_l_recall"],
            f"{role}_truth_ratio_geometric": naive["utility_geometric"],
            f"{role}_truth_ratio_arithmetic": naive["utility_arithmetic"],
        }
    return found | {"model_utility": harmonic_mean(nine)}


def naive_aucs(model: LoadedModel, given: SuiteInput, names: Sequence[str]) -> dict[str, float]:
    scores = {
        role: [naive_scores(model, row) for row in tokens(given, role)]
        for role in ("forget", "holdout")
    }
    return {
        name: pair_auc(*([s[name] for s in scores[role]] for role in ("forget", "holdout")))
        for name in names
    }


def taught(source: Path, data: EvaluationData, roles: Sequence[str], *, steps: int) -> LoadedModel:
    """The tiny model after a few steps on the answers of some roles."""
    model = load_model(ModelConfig(source=str(source)), ENGINE)
    given = input_of(model, data, limit=4)
    rows = [row for role in roles for row in tokens(given, role)]
    optimizer = torch.optim.AdamW(model.network.requires_grad_(True).parameters(), lr=5e-3)
    for _ in range(steps):
        batch = collate(rows, model.device)
        loss = model.network(
            input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.network.requires_grad_(False)
    return model


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A model that knows what it shall, the one before unlearning, and a given with all of them."""

    subject: LoadedModel
    initial: LoadedModel
    given: SuiteInput


@pytest.fixture(scope="module")
def compared(tiny_model: Path, noisy: LoadedModel, question_data: EvaluationData) -> Compared:
    kept = ("retain", "real_authors", "world_facts")
    subject = taught(tiny_model, question_data, kept, steps=60)
    initial = taught(tiny_model, question_data, ("forget", *kept), steps=80)
    given = input_of(
        subject,
        question_data,
        limit=4,
        retain_only=subject_of(noisy),
        load_initial=lambda: subject_of(initial),
    )
    return Compared(subject=subject, initial=initial, given=given)


def test_tofu_of_four_sets(compared: Compared, noisy: LoadedModel) -> None:
    model, given = compared.subject, compared.given
    found = run("tofu", given).metrics
    forget = naive_tofu(model, given, "forget")
    same = ("probability", "rouge_l_recall", "paraphrase_probability")
    agree(
        found,
        {f"forget_{name}": average(forget[name]) for name in same}
        | {
            "forget_extraction_strength": average(forget["extraction_strength"]),
            "forget_exact_memorization": average(forget["exact_memorization"]),
            "forget_truth_ratio_geometric": average(forget["forget_geometric"]),
            "forget_truth_ratio_arithmetic": average(forget["forget_arithmetic"]),
        },
    )
    utility = naive_utility(model, given)
    assert utility["model_utility"] > 0.0
    agree(found, utility)
    unseen = naive_tofu(noisy, given, "forget")
    test = ks_2samp(forget["ratio_geometric"], unseen["ratio_geometric"])
    agree(
        found,
        {
            "forget_quality": float(test.pvalue),
            "forget_quality_statistic": float(test.statistic),
            "forget_quality_log10_p": math.log10(test.pvalue),
        },
    )


def test_composites_of_tofu(compared: Compared, noisy: LoadedModel) -> None:
    model, initial, given = compared.subject, compared.initial, compared.given
    found = run("tofu", given).metrics
    forget = {n: average(v) for n, v in naive_tofu(model, given, "forget").items()}
    mem = memorization_score(
        extraction_strength=forget["extraction_strength"],
        exact_memorization=forget["exact_memorization"],
        paraphrase_probability=forget["paraphrase_probability"],
        truth_ratio=forget["preference"],
    )
    priv = privacy_score(*(naive_aucs(m, given, ATTACKS) for m in (model, noisy)))
    before = naive_utility(initial, given)["model_utility"]
    assert before > 0.0
    assert priv > 0.0
    utility = utility_score(
        model_utility=naive_utility(model, given)["model_utility"],
        fluency=naive_fluency(model, given, "forget"),
        initial_model_utility=before,
        initial_fluency=naive_fluency(initial, given, "forget"),
    )
    expected = {"mem": mem, "priv": priv, "utility": utility}
    agree(
        found, expected | {"agg": aggregate_score(memorization=mem, privacy=priv, utility=utility)}
    )


def test_utility_is_the_part_of_tofu_that_needs_no_other_model(
    model: LoadedModel, noisy: LoadedModel, question_data: EvaluationData
) -> None:
    given = input_of(model, question_data, limit=2, retain_only=subject_of(noisy))
    alone, whole = run("utility", given), run("tofu", given)
    assert len(alone.metrics) == 13
    assert {name: whole.metrics[name] for name in alone.metrics} == alone.metrics
    assert [s for s in whole.samples if s["set"] != "forget"] == alone.samples
    assert {"utility", "agg"} & set(whole.metrics) == set()
    assert "utility and agg: need the model before unlearning; give --initial" in whole.notes
    caution = "forget_quality: of 2 rows it says little, for a statistic of up to 1.00 still gives more than 0.05"
    assert any(note.startswith(caution) for note in whole.notes)


def test_the_retain_only_model_itself_has_the_best_forget_quality(
    model: LoadedModel, question_data: EvaluationData
) -> None:
    given = input_of(model, question_data, limit=2, retain_only=subject_of(model))
    found = run("tofu", given).metrics
    assert (found["forget_quality"], found["forget_quality_statistic"], found["priv"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            {"perturbed_answer": None},
            "has no field 'perturbed_answer', which suite utility needs",
            id="missing",
        ),
        pytest.param(
            {"perturbed_answer": []},
            r"must be a list of texts that are not blank, got \[\]",
            id="empty",
        ),
        pytest.param(
            {"perturbed_answer": ["x", " "]},
            "must be a list of texts that are not blank",
            id="blank",
        ),
        pytest.param(
            {"perturbed_answer": ["x"]},
            "as many wrong answers as the first, 3, got 1",
            id="fewer",
        ),
        pytest.param(
            {"paraphrased_answer": ""},
            "field 'paraphrased_answer' must be text that is not blank, got ''",
            id="blank-paraphrase",
        ),
    ],
)
def test_a_question_without_its_fields_is_refused(
    model: LoadedModel,
    question_data: EvaluationData,
    tmp_path: Path,
    change: dict[str, Any],
    expected: str,
) -> None:
    records = pairs(5, 3)
    records[1] = {k: v for k, v in (records[1] | change).items() if v is not None}
    path = write_records(tmp_path / "retain.jsonl", records)
    data = question_data.model_copy(
        update={"retain": SourceConfig(source=str(path), fields=QUESTIONS)}
    )
    with pytest.raises(DataError, match=r"data\.retain: .*retain\.jsonl row 2.*" + expected):
        run("utility", input_of(model, data))
