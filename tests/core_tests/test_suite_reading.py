"""Suites read rows once and alike in every batch, and hide no broken number; probes against a naive loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from naive_suites import average, close, hits, log_probs, row_nll
from suite_inputs import ENGINE, input_of, run, subject_of, tokens

from core.config import ModelConfig, SourceConfig
from core.metrics.rows import ROW_METRICS
from core.model.loading import LoadedModel, load_model
from core.suites import EvaluationData, parse_data

# Reading


def test_a_row_reads_the_same_in_every_batch(model: LoadedModel, text_data: EvaluationData) -> None:
    rows = tokens(input_of(model, text_data), "general")[:7]
    together = subject_of(model, 7).read(rows, tuple(ROW_METRICS))
    alone = subject_of(model, 1).read(rows[::-1], tuple(ROW_METRICS))
    for name in ROW_METRICS:
        assert together[name] == pytest.approx(alone[name][::-1], rel=1e-4, abs=1e-5)


def test_one_forward_pass_a_batch_serves_all_numbers(
    model: LoadedModel, text_data: EvaluationData
) -> None:
    rows = tokens(input_of(model, text_data), "forget")
    subject, passes = subject_of(model, 3), []
    hook = model.network.register_forward_hook(lambda *_: passes.append(1))
    try:
        subject.read(rows, tuple(ROW_METRICS))
        assert len(passes) == math.ceil(len(rows) / 3)
        subject.read(rows, ("nll", "min_k_0.4"))
    finally:
        hook.remove()
    assert len(passes) == math.ceil(len(rows) / 3)


def test_a_limit_keeps_the_first_rows(model: LoadedModel, text_data: EvaluationData) -> None:
    everything, first = (input_of(model, text_data, limit=n) for n in (None, 3))
    assert tokens(first, "retain") == tokens(everything, "retain")[:3]


def test_a_chunked_document_is_several_examples(
    model: LoadedModel, text_data: EvaluationData
) -> None:
    assert text_data.forget is not None
    source = text_data.forget.model_copy(update={"max_tokens": 8, "overlong": "chunk"})
    found = input_of(model, EvaluationData(forget=source)).rows.examples("forget")
    assert len(found) > 8
    assert all(5 <= len(example.tokens.ids) <= 8 for example in found)


def test_the_approximate_set_of_a_sweep_serves_as_holdout_set() -> None:
    values = {
        "forget": {"source": "embedded:forget"},
        "approximate": {"source": "embedded:approximate"},
        "probe_rows": 8,
        "split_seed": 1,
        "plain_template": "Q: {prompt} A: ",
    }
    found = parse_data(values, where="sweep.yaml, data")
    assert found.holdout == SourceConfig(source="embedded:approximate")
    assert (list(found.sources), found.plain_template) == (["forget", "holdout"], "Q: {prompt} A: ")


# Probes


def test_probes_pool_the_tokens_of_a_set(model: LoadedModel, text_data: EvaluationData) -> None:
    given = input_of(model, text_data)
    found = run("probes", given)
    for role in ("forget", "retain", "holdout", "general"):
        rows = tokens(given, role)
        assert len({len(row.ids) for row in rows}) > 2
        nll = -average([v for row in rows for v in log_probs(model, row)])
        close(found.metrics[f"{role}_nll"], nll)
        close(found.metrics[f"{role}_perplexity"], math.exp(nll))
        close(found.metrics[f"{role}_accuracy"], average([h for r in rows for h in hits(model, r)]))
        samples = [s for s in found.samples if s["set"] == role]
        assert [s["index"] for s in samples] == list(range(len(rows)))
        assert [s["n_tokens"] for s in samples] == [len(row.ids) - 1 for row in rows]
        assert [s["nll"] for s in samples] == pytest.approx(
            [row_nll(model, r) for r in rows], rel=1e-4
        )


# Broken numbers


def test_a_model_that_computes_nan_is_reported_and_not_hidden(
    tiny_model: Path, question_data: EvaluationData
) -> None:
    broken = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    with torch.no_grad():
        next(broken.network.parameters()).fill_(math.nan)
    given = input_of(broken, question_data, limit=1, retain_only=subject_of(broken))
    expected = {
        "tofu": "forget_quality",
        "mia": "loss_auc",
        "probes": "forget_nll",
        "memorization": "forget_probability",
    }
    for name, metric in expected.items():
        assert math.isnan(run(name, given).metrics[metric])
