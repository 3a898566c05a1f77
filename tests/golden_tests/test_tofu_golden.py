"""TOFU's metrics against the numbers of two codes that compute them."""

import pytest
import torch
from golden_cases import Case, Variant, variants
from torch import Tensor

from core.metrics.composites import harmonic_mean
from core.metrics.memorization import answer_nll
from core.metrics.tofu import (
    UTILITY_PARTS,
    forget_quality,
    forget_truth_score,
    model_utility,
    normalised_probability,
    truth_preference,
    truth_ratio,
    utility_truth_score,
)

AGGREGATES = {variant.name: variant for variant in Case("ou_aggregates").variants}
each_ks = pytest.mark.parametrize("name", [n for n in AGGREGATES if n.startswith("ks_")])
each_hm = pytest.mark.parametrize("name", [n for n in AGGREGATES if n.startswith("hm_")])

FILES = {
    "retain": "eval_log",
    "real_authors": "eval_real_author_wo_options",
    "world_facts": "eval_real_world_wo_options",
    "forget": "eval_log_forget",
}
THEIR_SETS = {
    "retain": "Retain",
    "real_authors": "Real Authors",
    "world_facts": "Real World",
    "forget": "Forget",
}
ROUTES = ("route_A_utils", "route_B_aggregate")


# LoKU


def loaded(variant: Variant, model: str, split: str, field: str) -> Tensor:
    return variant.tensor(variant.inputs[f"{model}/{FILES[split]}/{field}"])


def ratios(variant: Variant, model: str, split: str, *, route: str) -> Tensor:
    return truth_ratio(
        -loaded(variant, model, split, "avg_paraphrased_loss"),
        -loaded(variant, model, split, "average_perturb_loss"),
        mean="arithmetic" if route == "route_A_utils" else "geometric",
    )


def loku_parts(variant: Variant, route: str) -> dict[str, float]:
    """Our names and values of all twelve numbers."""
    parts = {}
    for split in FILES:
        right = -loaded(variant, "unlearned", split, "avg_gt_loss")
        wrong = -loaded(variant, "unlearned", split, "average_perturb_loss")
        has_options = split in ("real_authors", "world_facts")
        probability = normalised_probability(right, wrong) if has_options else right.exp()
        score = forget_truth_score if split == "forget" else utility_truth_score
        truth = score(ratios(variant, "unlearned", split, route=route))
        rouge = loaded(variant, "unlearned", split, "rougeL_recall")
        parts[f"{split}_probability"] = probability.mean().item()
        parts[f"{split}_rouge"] = rouge.mean().item()
        parts[f"{split}_truth_ratio"] = truth.mean().item()
    return parts


def their_name(part: str, route: str) -> str:
    split = next(s for s in THEIR_SETS if part.startswith(s))
    metric = part.removeprefix(f"{split}_")
    if route == "route_A_utils":
        names = {"probability": "Probability", "rouge": "ROUGE", "truth_ratio": "Truth Ratio"}
        return f"{THEIR_SETS[split]} {names[metric]}"
    names = {"probability": "Prob.", "rouge": "ROUGE", "truth_ratio": "Truth Ratio"}
    return f"{names[metric]} {THEIR_SETS[split]}"


@pytest.mark.parametrize("route", ROUTES)
@variants("loku_utility_forget_quality")
def test_golden_model_utility_is_that_of_either_route_of_loku(variant: Variant, route: str) -> None:
    expected, parts = variant.expected[route], loku_parts(variant, route)
    assert {their_name(p, route) for p in parts} | {"Model Utility"} == set(expected)
    for part, value in parts.items():
        name = their_name(part, route)
        variant.agrees_with(value, expected[name], f"{route} {name}")
    utility = model_utility({name: parts[name] for name in UTILITY_PARTS})
    variant.agrees_with(utility, expected["Model Utility"], f"{route} Model Utility")


@variants("loku_utility_forget_quality")
def test_golden_routes_of_loku_differ_in_the_truth_ratio_alone(variant: Variant) -> None:
    by_utils, by_aggregate = (loku_parts(variant, route) for route in ROUTES)
    differing = {p for p in by_utils if abs(by_utils[p] - by_aggregate[p]) > 1e-12}
    assert differing == {f"{split}_truth_ratio" for split in FILES}
    utils, aggregate = (variant.expected[route]["Model Utility"] for route in ROUTES)
    assert abs(utils - aggregate) > 0.03


@variants("loku_utility_forget_quality")
def test_golden_forget_quality_is_that_of_loku_on_inverted_ratios(variant: Variant) -> None:
    unlearned, retain = (
        ratios(variant, model, "forget", route="route_B_aggregate")
        for model in ("unlearned", "retain_model")
    )
    expected = variant.expected["forget_quality"]
    for found in (forget_quality(unlearned, retain), forget_quality(1 / unlearned, 1 / retain)):
        variant.agrees_with(
            found.p_value, expected["Forget Quality"], "Forget Quality", kind="ks_pvalue"
        )
        variant.agrees_with(
            found.p_value, expected["KS Test PVal Forget"], "KS Test PVal Forget", kind="ks_pvalue"
        )
        variant.agrees_with(found.statistic, expected["KS Test Forget"], "KS Test Forget")


@variants("loku_truth_ratio_from_logits")
def test_golden_truth_ratio_from_logits_is_that_of_loku(variant: Variant) -> None:
    """Their unshifted count of labels is the count of predictions: no golden row has a first label."""
    logits, labels, wrong_logits, wrong_labels = (
        variant.tensor(variant.inputs[f"{kind}.{field}"])
        for kind in ("paraphrased", "perturbed")
        for field in ("logits", "labels")
    )
    right = answer_nll(logits, labels)
    wrong = torch.stack([answer_nll(x, y) for x, y in zip(wrong_logits, wrong_labels, strict=True)])
    variant.agrees(right, "avg_paraphrased_loss")
    variant.agrees(wrong, "average_perturb_loss")
    n_right, n_wrong = (labels[:, 1:] >= 0).sum(dim=-1), (wrong_labels[..., 1:] >= 0).sum(dim=-1)
    variant.agrees(n_right, "num_token_paraphrased")
    variant.agrees(n_wrong, "num_token_perturb")
    variant.agrees(right * n_right, "paraphrased_loss")
    variant.agrees(wrong * n_wrong, "perturb_loss")
    variant.agrees(truth_ratio(-right, -wrong, mean="geometric"), "truth_ratio")
    other = truth_ratio(-right, -wrong, mean="arithmetic")
    assert bool((other > variant.tensor(variant.expected["truth_ratio"]) + 1e-3).any())


# OpenUnlearning


@variants("ou_truth_ratio")
def test_golden_truth_ratio_and_its_scores_are_those_of_openunlearning(variant: Variant) -> None:
    """Theirs adds 1e-10 to denominators, far below the tolerance."""
    n_wrong = variant.params["wrong_answers"]
    right, *wrong = (
        -answer_nll(*(variant.tensor(variant.inputs[f"{kind}.{x}"]) for x in ("logits", "labels")))
        for kind in ("correct", *(f"wrong{i}" for i in range(n_wrong)))
    )
    others = torch.stack(wrong, dim=1)
    variant.agrees(-right, "correct.avg_loss")
    variant.agrees(-others, "wrong.avg_loss")
    found = truth_ratio(right, others, mean="geometric")
    variant.agrees(found, "closer_to_1_better.per_sample")
    variant.agrees(found, "true_better.per_sample")
    variant.agrees(forget_truth_score(found).mean(), "closer_to_1_better.agg")
    variant.agrees(utility_truth_score(found).mean(), "true_better.agg")
    variant.agrees(truth_preference(found), "prob_mean.per_sample")
    variant.agrees(truth_preference(found).mean(), "prob_mean.agg")
    variant.agrees(normalised_probability(right, others), "probability_w_options.per_sample")
    variant.agrees(normalised_probability(right, others).mean(), "probability_w_options.agg")


@each_ks
def test_golden_forget_quality_is_that_of_openunlearning(name: str) -> None:
    variant = AGGREGATES[name]
    found = forget_quality(
        variant.tensor(variant.inputs["truth_ratio_unlearned"]),
        variant.tensor(variant.inputs["truth_ratio_retain"]),
    )
    variant.agrees(found.p_value, "pvalue", kind="ks_pvalue")
    variant.agrees(found.statistic, "statistic", derived=True)


@each_hm
def test_golden_harmonic_mean_is_that_of_openunlearning(name: str) -> None:
    variant = AGGREGATES[name]
    values = variant.tensor(variant.inputs["values"]).tolist()
    variant.agrees(harmonic_mean(values), "model_utility")
    if len(values) == len(UTILITY_PARTS):
        parts = dict(zip(UTILITY_PARTS, values, strict=True))
        variant.agrees(model_utility(parts), "model_utility")


def test_golden_aggregates_are_all_compared() -> None:
    compared = {n for n in AGGREGATES if n.startswith(("ks_", "hm_"))} | {"privleak"}
    assert set(AGGREGATES) == compared
