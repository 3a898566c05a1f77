"""Suite mia against pairs of rows and naive scores."""

from __future__ import annotations

import pytest
import torch
from naive_suites import average, close, naive_scores, pair_auc
from suite_inputs import input_of, run, subject_of, tokens
from torch.nn import functional as F

from core.data.tokens import TokenRow
from core.model.loading import LoadedModel
from core.suites import EvaluationData


def naive_grad_norm(model: LoadedModel, row: TokenRow) -> float:
    model.network.requires_grad_(True)
    logits = model.network(input_ids=torch.tensor([row.ids])).logits[0]
    first = max(1, row.n_context)
    loss = F.cross_entropy(logits[first - 1 : -1], torch.tensor(row.ids[first:]))
    loss.backward()
    norms = [float(w.grad.norm()) for w in model.network.parameters() if w.grad is not None]
    model.network.zero_grad(set_to_none=True)
    model.network.requires_grad_(False)
    return average(norms)


def test_mia_against_pairs(
    blank: LoadedModel, noisy: LoadedModel, text_data: EvaluationData
) -> None:
    given = input_of(noisy, text_data, limit=6, retain_only=subject_of(blank))
    found = run("mia", given)
    rows = {role: tokens(given, role) for role in ("forget", "holdout")}
    ours = {role: [naive_scores(noisy, r) for r in rows[role]] for role in rows}
    theirs = {role: [naive_scores(blank, r) for r in rows[role]] for role in rows}
    for role, scores in ours.items():
        for score, row, other in zip(scores, rows[role], theirs[role], strict=True):
            score["grad_norm"] = naive_grad_norm(noisy, row)
            score["reference"] = score["loss"] - other["loss"]
    for prefix, naive in (("", ours), ("retain_only_", theirs)):
        for name in naive["forget"][0]:
            expected = pair_auc(*([s[name] for s in naive[role]] for role in ("forget", "holdout")))
            assert found.metrics[f"{prefix}{name}_auc"] == expected, name
    for sample, score in zip(found.samples, [*ours["forget"], *ours["holdout"]], strict=True):
        assert {k: sample[k] for k in score} == pytest.approx(score, rel=1e-3, abs=1e-5)
    a, r = (found.metrics[f"{prefix}min_k_auc"] for prefix in ("", "retain_only_"))
    assert r < 1.0
    close(found.metrics["privleak"], 100 * (r - a) / (1 - r))
    close(found.metrics["min_k_auc_difference"], 100 * (a - r) / r)
    assert found.notes == (
        "reference_auc: the reference is the retain-only model, tiny",
        "privleak: compared with the retain-only model tiny",
    )


def test_mia_of_a_memorised_set_without_other_models(
    model: LoadedModel, text_data: EvaluationData
) -> None:
    found = run("mia", input_of(model, text_data))
    assert found.metrics["loss_auc"] > 0.95
    close(found.metrics["privleak"], 100 * (0.5 - found.metrics["min_k_auc"]) / 0.5)
    assert "reference_auc" not in found.metrics
    assert "min_k_auc_difference" not in found.metrics
    assert "retain-only model is given, so its Min-40 % AUC is taken to be 0.5" in found.notes[0]


def test_mia_leaves_no_gradient_behind(model: LoadedModel, text_data: EvaluationData) -> None:
    run("mia", input_of(model, text_data, limit=2))
    assert not any(w.requires_grad for w in model.network.parameters())
    assert all(w.grad is None for w in model.network.parameters())
