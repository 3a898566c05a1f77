"""Suites relearning and paraphrase, and what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from naive_suites import average, close, log_probs, naive_answer, probability
from suite_inputs import END, ENGINE, input_of, run, subject_of, tokens

from core.config import ModelConfig
from core.data.batches import collate
from core.data.tokens import TokenRow
from core.errors import DataError
from core.metrics.memorization import rouge_l
from core.model.loading import LoadedModel, load_model
from core.suites import AuditOptions, EvaluationData


def test_a_text_is_no_question(model: LoadedModel, text_data: EvaluationData) -> None:
    with pytest.raises(
        DataError, match=r"suite paraphrase needs questions with answers, .* is a text"
    ):
        run("paraphrase", input_of(model, text_data))


@pytest.fixture(scope="module")
def unlearned(tiny_model: Path, text_data: EvaluationData) -> LoadedModel:
    """The tiny model after a few steps of gradient ascent on its forget set."""
    model = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    rows = tokens(input_of(model, text_data), "forget")
    batch = collate(rows, model.device)
    optimizer = torch.optim.SGD(model.network.requires_grad_(True).parameters(), lr=0.003)
    for _ in range(200):
        loss = model.network(
            input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels
        ).loss
        if loss.item() > 2.0:
            break
        optimizer.zero_grad()
        (-loss).backward()
        optimizer.step()
    assert 2.0 < loss.item() < 3.5
    model.network.requires_grad_(False)
    return model


def test_relearning_brings_back_rows_that_it_did_not_read(
    unlearned: LoadedModel, model: LoadedModel, text_data: EvaluationData
) -> None:
    before = {n: w.clone() for n, w in unlearned.network.named_parameters()}
    options = AuditOptions(relearn_samples=3, relearn_steps=5, relearn_rate=1e-3)
    given = input_of(unlearned, text_data, options=options, load_initial=lambda: subject_of(model))
    found = run("relearning", given)
    metrics = found.metrics
    assert metrics["after_nll"] < metrics["before_nll"] - 0.1
    assert metrics["after_extraction_strength"] >= metrics["before_extraction_strength"]
    rows = [tokens(given, "forget")[s["index"]] for s in found.samples]
    assert len(rows) == 5 == len({row.ids for row in rows})
    naive = [-average([v for r in rows for v in log_probs(m, r)]) for m in (unlearned, model)]
    close(metrics["before_nll"], naive[0])
    holdout = -average([v for r in tokens(given, "holdout") for v in log_probs(model, r)])
    span = abs(naive[1] - holdout)
    closure = max(-1.0, min(1.0, 1 - abs(naive[0] - holdout) / span))
    assert abs(closure) < 1.0
    close(metrics["before_forget_closure"], closure)
    assert metrics["after_relearned_nll"] < metrics["after_nll"]
    assert all(torch.equal(w, before[n]) for n, w in unlearned.network.named_parameters())


def test_relearning_repeats(unlearned: LoadedModel, text_data: EvaluationData) -> None:
    options = AuditOptions(relearn_samples=2, relearn_steps=2)
    found = [run("relearning", input_of(unlearned, text_data, options=options)) for _ in range(2)]
    assert found[0] == found[1]
    assert "before_forget_closure" not in found[0].metrics


def test_relearning_needs_rows_that_it_does_not_read(
    model: LoadedModel, text_data: EvaluationData
) -> None:
    with pytest.raises(DataError, match=r"trains on 8 rows .* got 8; give more, or lower"):
        run("relearning", input_of(model, text_data))


def test_paraphrases(model: LoadedModel, question_data: EvaluationData) -> None:
    given = input_of(model, question_data, limit=3)
    found = run("paraphrase", given).metrics
    said, asked, recall = [], [], []
    for example in given.rows.examples("forget"):
        record = example.record

        def row(question: str, answer: str) -> TokenRow:
            ids = model.tokenizer(question)["input_ids"]
            return TokenRow((*ids, *model.tokenizer(f" {answer}")["input_ids"], END), len(ids))

        said.append(probability(model, row(record["question"], record["paraphrased_answer"])))
        other = row(record["paraphrased_question"], record["answer"])
        asked.append(probability(model, other))
        recall.append(rouge_l(naive_answer(model, other), record["answer"]).recall)
    close(found["forget_paraphrased_answer_probability"], average(said))
    close(found["forget_paraphrased_question_probability"], average(asked))
    close(found["forget_paraphrased_question_rouge_l_recall"], average(recall))
