"""Memorisation metrics against the numbers of the code they come from."""

import math

import numpy as np
import torch
from golden_cases import FOLDER, Variant, variants
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from core.metrics.memorization import (
    answer_nll,
    answer_probability,
    cut_generation,
    exact_memorization,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    rouge_1_recall,
    rouge_l,
    without_last_label,
)
from core.model.decoding import suffix_continuations

# Jang et al.


def jang_model(variant: Variant) -> nn.Module:
    stored = variant.params["model"]
    derived = ("attention_layers", "model_type")
    values = {k: v for k, v in stored["config"].items() if k not in derived}
    network = GPTNeoForCausalLM(GPTNeoConfig(**values))
    weights = {k: v.float() for k, v in load_file(FOLDER / stored["file"]).items()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected  # tied to the embedding
    module: nn.Module = network.eval()
    return module


def likelihoods(found: list[list[list[int]]], truth: list[list[int]], *, n: int) -> Tensor:
    return torch.tensor(
        [extraction_likelihood(g, t, n=n) for g, t in zip(found, truth, strict=True)],
        dtype=torch.float64,
    )


def filled(found: list[list[list[int]]], end: int) -> list[list[list[int]]]:
    """Continuations as the reference makes them: a batch of one prefix length stops when all rows have."""
    result: list[list[list[int]]] = [[] for _ in found]
    for batch in zip(*found, strict=True):
        ends = [row.index(end) + 1 if end in row else len(row) for row in batch]
        for rows, row, length in zip(result, batch, ends, strict=True):
            rows.append(row[:length] + [end] * (max(ends) - length))
    return result


@variants("jang_el_ma")
@torch.no_grad()
def test_golden_likelihood_and_accuracy_are_those_of_jang(variant: Variant) -> None:
    network, ids = jang_model(variant), variant.tensor(variant.inputs["sequences"])
    logits = network(input_ids=ids).logits
    accuracy = memorization_accuracy(logits, ids)
    variant.agrees(accuracy, "ma", kind="ma")
    variant.agrees(accuracy.mean(), "ma_batch", kind="ma")
    choices = logits.argmax(dim=-1)
    if "loss" in variant.expected:
        variant.agrees(choices[:, 99:-1], "preds_after_100")
        np.testing.assert_allclose(
            answer_nll(logits, ids).numpy(), variant.tensor(variant.expected["loss"]), rtol=1e-5
        )
    else:
        variant.agrees(choices[:, :-1], "ma_predictions")
    truth, end = ids.tolist(), variant.params["model"]["config"]["eos_token_id"]
    ours = list(suffix_continuations(network, truth, batch_size=16))
    theirs = filled(ours, end)
    assert (ours != theirs) == (variant.name == "eos_early")
    for n in variant.params["n"]:
        found = likelihoods(ours, truth, n=n)
        if ours != theirs:
            variant.deviates(found, f"el_{n}", by=0.01)
            found = likelihoods(theirs, truth, n=n)
        variant.agrees(found, f"el_{n}", kind="el")
        variant.agrees(found.mean(), f"el_{n}_batch_mean", kind="el")


# OpenUnlearning


@variants("ou_memorization")
def test_golden_probability_exact_memorisation_and_strength_are_those_of_openunlearning(
    variant: Variant,
) -> None:
    logits, labels = (
        variant.tensor(variant.inputs["logits"]),
        variant.tensor(variant.inputs["labels"]),
    )
    shortened = without_last_label(labels)
    variant.agrees(answer_probability(logits, labels), "prob")
    variant.agrees(answer_probability(logits, labels).mean(), "prob_mean")
    variant.agrees(answer_nll(logits, labels), "avg_loss")
    exact = exact_memorization(logits, shortened)
    variant.agrees(exact, "em")
    variant.agrees(exact.nanmean(), "em_mean")
    variant.deviates(exact_memorization(logits, labels), "em", by=0.01)
    strength = extraction_strength(logits, shortened)
    variant.deviates(strength, "es", by=0.1)
    counted = (shortened[:, 1:] >= 0).sum(dim=1)
    with_floor = torch.maximum(strength, 1.0 / counted)
    of_all_rows = torch.where(counted > 0, with_floor, 0.0)
    variant.agrees(of_all_rows, "es")
    variant.agrees(of_all_rows.mean(), "es_mean")


@variants("ou_memorization")
def test_golden_strength_without_a_right_last_token_is_zero_not_the_floor(variant: Variant) -> None:
    logits, labels = (
        variant.tensor(variant.inputs["logits"]),
        variant.tensor(variant.inputs["labels"]),
    )
    shortened = without_last_label(labels)
    strength = extraction_strength(logits, shortened)
    for row, reference in enumerate(variant.tensor(variant.expected["es"]).tolist()):
        counted = [t for t in range(1, labels.shape[1]) if shortened[row, t] >= 0]
        if not counted:
            assert math.isnan(strength[row]) and reference == 0.0
        elif logits[row, counted[-1] - 1].argmax() != shortened[row, counted[-1]]:
            assert strength[row] == 0.0
            assert abs(reference - 1 / len(counted)) < 1e-6


@variants("ou_rouge")
def test_golden_rouge_is_that_of_openunlearning(variant: Variant) -> None:
    samples = variant.params["samples"]
    generated = [
        cut_generation(s["raw_generation"], stops=variant.params["stopwords"] or ())
        for s in samples
    ]
    assert generated == [s["generation"] for s in samples]
    by_their_truth = [s["ground_truth"] for s in samples]
    longest = [rouge_l(g, t) for g, t in zip(generated, by_their_truth, strict=True)]
    words = [rouge_1_recall(g, t) for g, t in zip(generated, by_their_truth, strict=True)]
    variant.agrees([score.recall for score in longest], "rougeL_recall")
    variant.agrees([score.f1 for score in longest], "rougeL_f1")
    variant.agrees(words, "rouge1_recall")
    variant.agrees(np.mean([score.recall for score in longest]), "rougeL_recall_mean")
    variant.agrees(np.mean([score.f1 for score in longest]), "rougeL_f1_mean")
    variant.agrees(np.mean(words), "rouge1_recall_mean")


@variants("ou_rouge")
def test_golden_rouge_of_an_answer_that_repeats_the_prompt_deviates(variant: Variant) -> None:
    found = []
    for sample in variant.params["samples"]:
        cut = cut_generation(sample["raw_generation"], stops=variant.params["stopwords"] or ())
        found.append(rouge_l(cut, sample["answer"]).recall)
    variant.deviates(found, "rougeL_recall", by=0.1)
    reference = variant.tensor(variant.expected["rougeL_recall"]).tolist()
    differing = [
        s["name"]
        for s, ours, theirs in zip(variant.params["samples"], found, reference, strict=True)
        if abs(ours - theirs) > 1e-12
    ]
    assert differing == ["prompt_repeated"]


# Yao et al.


@variants("yao_ppl_acc")
def test_golden_perplexity_and_accuracy_of_yao_are_means_of_rows(variant: Variant) -> None:
    logits, labels = (
        variant.tensor(variant.inputs["logits"]),
        variant.tensor(variant.inputs["labels"]),
    )
    variant.agrees(answer_nll(logits, labels).mean().exp(), "ppl")
    variant.agrees(100 * memorization_accuracy(logits, labels).mean(), "acc_percent")
