"""Suites muse and fluency against naive loops of single rows."""

from __future__ import annotations

from pathlib import Path

import torch
from naive_suites import agree, average, close, greedy, naive_answer, naive_fluency, text
from suite_inputs import END, input_of, run, tokens

from core.metrics.memorization import rouge_l
from core.model.loading import LoadedModel
from core.suites import AuditOptions, EvaluationData


def test_muse_of_texts_and_questions(
    model: LoadedModel, text_data: EvaluationData, question_data: EvaluationData
) -> None:
    data = text_data.model_copy(
        update={"forget_qa": question_data.forget, "retain_qa": question_data.retain}
    )
    given = input_of(model, data, limit=4)
    found = run("muse", given)
    verbatim = []
    for row in tokens(given, "forget"):
        half = len(row.ids) // 2
        written = text(model, greedy(model, row.ids[:half], len(row.ids) - half)).strip()
        verbatim.append(rouge_l(written, text(model, row.ids[half:])).f1)
    close(found.metrics["verbmem_f"], average(verbatim))
    for name, role in (("knowmem_f", "forget_qa"), ("knowmem_r", "retain_qa")):
        examples = given.rows.examples(role)
        close(
            found.metrics[name],
            average([rouge_l(naive_answer(model, e.tokens, 32), e.answer).f1 for e in examples]),
        )
    mia = run("mia", given).metrics
    assert found.metrics["privleak"] == mia["privleak"]
    assert len(found.samples) == 5 * 4


def test_muse_continues_given_beginnings(
    model: LoadedModel, text_data: EvaluationData, question_data: EvaluationData
) -> None:
    roles = {"forget_qa": question_data.forget, "retain_qa": question_data.retain}
    data = text_data.model_copy(update={**roles, "verbatim": question_data.holdout})
    given = input_of(model, data, limit=2)
    examples = given.rows.examples("verbatim")
    expected = [rouge_l(naive_answer(model, e.tokens, 128), e.answer).f1 for e in examples]
    close(run("muse", given).metrics["verbmem_f"], average(expected))


def test_fluency_is_the_entropy_of_what_is_written(
    model: LoadedModel, question_data: EvaluationData
) -> None:
    given = input_of(model, question_data, limit=2)
    found = run("fluency", given).metrics
    assert all(found[f"{role}_ngram_entropy"] > 0.0 for role in ("forget", "retain"))
    agree(
        found,
        {f"{r}_ngram_entropy": naive_fluency(model, given, r) for r in ("forget", "retain")},
    )


def test_fluency_by_a_classifier(
    model: LoadedModel, question_data: EvaluationData, tmp_path: Path
) -> None:
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    config = type(model.network.config)(
        **{
            **model.network.config.to_dict(),  # type: ignore[operator,union-attr]
            "id2label": {0: "noise", 1: "clean"},
            "label2id": {"noise": 0, "clean": 1},
            "pad_token_id": END,
        }
    )
    classifier = LlamaForSequenceClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    options = AuditOptions(fluency_model=str(tmp_path))
    given = input_of(model, question_data, limit=2, options=options)
    found = run("fluency", given)
    expected = []
    for row in tokens(given, "forget"):
        ids = model.tokenizer(naive_answer(model, row), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(classifier(ids).logits[0].softmax(dim=-1)[1]))
    close(found.metrics["forget_clean_probability"], average(expected))
