"""Membership metrics against the numbers of the code they come from."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from golden_cases import FOLDER, Case, Variant, variants
from safetensors.torch import load_file
from torch import Tensor

from core.losses import IGNORED, nll_loss
from core.losses.alignment import counted_tokens
from core.metrics.composites import relative_difference
from core.metrics.memorization import without_last_label
from core.metrics.privacy import (
    auc,
    grad_norm_score,
    loss_score,
    min_k,
    min_k_plus_plus,
    privleak,
    reference_score,
    zlib_score,
)

SIDES = ("forget", "holdout")


def batch(variant: Variant, side: str, *fields: str) -> Iterator[Tensor]:
    return (variant.tensor(variant.inputs[f"{side}.{field}"]) for field in fields)


# OpenUnlearning


def texts_of(labels: Tensor) -> list[str]:
    """Ids below 256 are bytes; 256 is the end of text."""
    return [bytes(i for i in row if 0 <= i < 256).decode() for row in labels.tolist()]


def openunlearning_scores(variant: Variant, side: str) -> dict[str, Tensor]:
    logits, reference, labels = batch(variant, side, "logits", "ref_logits", "labels")
    k, shortened, nll = variant.params["k"], without_last_label(labels), loss_score(logits, labels)
    return {
        "loss": nll,
        "zlib": zlib_score(nll, texts_of(labels)),
        "min_k": min_k(logits, shortened, k=k),
        "min_k_plus_plus": min_k_plus_plus(logits, shortened, k=k),
        "reference": reference_score(nll, loss_score(reference, labels)),
    }


@variants("ou_mia")
def test_golden_scores_and_auc_are_those_of_openunlearning(variant: Variant) -> None:
    forget, holdout = (openunlearning_scores(variant, side) for side in SIDES)
    for name in forget:
        variant.agrees(forget[name], f"{name}.forget_scores", kind="scores")
        variant.agrees(holdout[name], f"{name}.holdout_scores", kind="scores")
        variant.agrees(auc(forget[name], holdout[name]), f"{name}.auc", kind="auc")


@variants("ou_mia")
def test_golden_min_k_counts_the_last_label_unless_it_is_taken_away(variant: Variant) -> None:
    logits, labels = batch(variant, "forget", "logits", "labels")
    k = variant.params["k"]
    variant.deviates(min_k(logits, labels, k=k), "min_k.forget_scores", by=1e-3)
    variant.deviates(min_k_plus_plus(logits, labels, k=k), "min_k_plus_plus.forget_scores", by=1e-3)


def golden_model(variant: Variant) -> Any:
    stored = variant.params["model"]
    values = dict(stored["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict({k: v.float() for k, v in load_file(FOLDER / stored["file"]).items()})
    return model.eval()


def gradient_norms(model: Any, ids: Tensor, mask: Tensor, labels: Tensor, *, p: float) -> Tensor:
    """Scores of the rows, each with a forward and a backward pass of its own."""
    scores = []
    for row in (slice(i, i + 1) for i in range(len(ids))):
        logits = model(input_ids=ids[row], attention_mask=mask[row]).logits
        loss = nll_loss(logits, labels[row])
        scores.append(grad_norm_score(torch.autograd.grad(loss, list(model.parameters())), p=p))
    return torch.stack(scores)


@variants("ou_mia_gradnorm")
def test_golden_gradient_norms_are_those_of_openunlearning(variant: Variant) -> None:
    model, p = golden_model(variant), float(variant.params["p"])
    found = {}
    for side in SIDES:
        ids, mask, labels = batch(variant, side, "input_ids", "attention_mask", "labels")
        found[side] = gradient_norms(model, ids, mask, without_last_label(labels), p=p)
        variant.agrees(found[side], f"{side}_scores", kind="scores")
        with_last_label = gradient_norms(model, ids, mask, labels, p=p)
        variant.deviates(with_last_label, f"{side}_scores", by=1e-3)
    variant.agrees(auc(found["forget"], found["holdout"]), "auc", kind="auc")


def test_golden_privleak_and_relative_difference_are_those_of_openunlearning() -> None:
    """Theirs adds 1e-10 to the denominator: visible where the retain model's AUC is 0.999, else not."""
    (variant,) = (v for v in Case("ou_aggregates").variants if v.name == "privleak")
    unlearned, retain = (variant.tensor(variant.inputs[x]) for x in ("auc", "auc_retain"))
    pairs = list(zip(unlearned.tolist(), retain.tolist(), strict=True))
    leaks = torch.tensor([privleak(a, r) for a, r in pairs], dtype=torch.float64)
    theirs = variant.tensor(variant.expected["privleak"])
    usual = retain < 0.99
    assert usual.tolist() == [True] * 5 + [False]
    variant.agrees_with(leaks[usual], theirs[usual], "privleak")
    variant.deviates(leaks, "privleak", by=1e-3)
    variant.agrees(leaks * (1 - retain) / (1 - retain + 1e-10), "privleak")
    variant.agrees([relative_difference(a, r) for a, r in pairs], "rel_diff")
    variant.agrees(privleak(unlearned[1].item()), "privleak_default_reference")


# Yao et al.


@variants("yao_min_k")
def test_golden_min_k_of_yao_has_the_other_sign_and_drops_short_rows(variant: Variant) -> None:
    """Ours keeps every row, and its AUC is not folded; on the rows that theirs keeps the two agree.

    Their accuracy and true positive rate belong to the reversed score and have no counterpart here.
    """
    for percent in (30, 40, 50, 60, 100):
        k, quantity = percent / 100, f"min_{percent}_value"
        kept, whole = {}, {}
        for side in ("forget", "approximate"):
            logits, labels = batch(variant, side, "logits", "labels")
            n_lowest = [int(k * n) for n in counted_tokens(labels).sum(dim=1).tolist()]
            whole[side] = min_k(logits, labels, k=k)
            kept[side] = whole[side][torch.tensor(n_lowest) > 0]
            assert bool(torch.isfinite(whole[side]).all()) and len(whole[side]) == len(labels)
            variant.agrees(-kept[side], f"{side}.{quantity}", kind="scores")
        unfolded = auc(kept["forget"], kept["approximate"])
        variant.agrees(unfolded, f"auc_unfolded.{quantity}", kind="auc", derived=True)
        variant.agrees(max(unfolded, 1.0 - unfolded), f"auc_folded.{quantity}", kind="auc")
        if unfolded < 0.5:
            variant.deviates(unfolded, f"auc_folded.{quantity}", by=0.1)
        if variant.name == "short_samples" and percent in (30, 50):
            of_all_rows = auc(whole["forget"], whole["approximate"])
            variant.deviates(of_all_rows, f"auc_folded.{quantity}", by=0.01)


@variants("yao_min_k")
def test_golden_short_rows_of_yao_are_scored_by_their_least_likely_token(variant: Variant) -> None:
    logits, labels = batch(variant, "forget", "logits", "labels")
    found = min_k(logits, labels, k=0.3)
    dropped = len(found) - len(variant.tensor(variant.expected["forget.min_30_value"]))
    assert dropped == {"v17": 1, "v257": 0, "short_samples": 2}[variant.name]
    for row in range(len(labels)):
        counted = [t for t in range(1, labels.shape[1]) if labels[row, t] != IGNORED]
        if int(0.3 * len(counted)) == 0:
            log_probs = torch.log_softmax(logits[row], dim=-1)
            surprises = [-log_probs[t - 1, labels[row, t]] for t in counted]
            torch.testing.assert_close(found[row], torch.stack(surprises).max())
