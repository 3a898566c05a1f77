"""All losses against naive loops over tokens in float64."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import BETA, batches, losses_for, reference_of
from torch import Tensor

from core.losses import IGNORED, ceu_loss, counted_tokens


def softmax(z: Any) -> Any:
    weights = np.exp(z - z.max())
    return weights / weights.sum()


def log_softmax(z: Any) -> Any:
    return z - z.max() - math.log(np.exp(z - z.max()).sum())


def naive_token(name: str, z: Any, reference: Any, answer: int) -> float:
    """One term of a loss on tokens, in float64, from its definition."""
    p, log_p, n_vocabulary = softmax(z), log_softmax(z), len(z)
    others = [v for v in range(n_vocabulary) if v != answer]
    match name:
        case "ga":
            return float(log_p[answer])
        case "nll":
            return float(-log_p[answer])
        case "ihl":
            return float(1 + p[answer] - max(p[v] for v in others))
        case "wga":
            return float(p[answer] ** 0.5 * log_p[answer])
        case "satimp":
            return float(p[answer] ** 0.5 * sum(p[v] for v in others) ** 2 * log_p[answer])
        case "random_labels" | "adversarial_labels":
            return float(-log_p[(answer + 1) % n_vocabulary])
        case "pdu":
            return float((max(z) - sum(z) / n_vocabulary) ** 2)
        case "kl":
            log_q = log_softmax(reference)
            return float(sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True)))
        case "undial":
            wanted = softmax(reference - 2.0 * np.eye(n_vocabulary)[answer])
            return float(-sum(wanted * log_p))
        case "ceu":
            rest = softmax(z[others])
            return float(-sum(q * log_p[v] for q, v in zip(rest, others, strict=True)))
    raise AssertionError(name)


def naive(name: str, logits: Tensor, labels: Tensor) -> float:
    """The definitions, one token at a time: a mean over tokens, or over rows of sums over tokens."""
    z = logits.double().numpy()
    reference = reference_of(logits, labels).double().numpy()
    terms: list[list[float]] = []
    for b, row in enumerate(labels.tolist()):
        where = [(t, row[t + 1]) for t in range(len(row) - 1) if row[t + 1] != IGNORED]

        def total(quantity: str, at: Any, b: int = b, where: Any = where) -> float:
            return sum(naive_token(quantity, at[b, t], reference[b, t], a) for t, a in where)

        match name:
            case "npo":
                margin = total("nll", z) - total("nll", reference)
            case "dpo":
                margin = total("nll", z) - total("nll", reference)
                margin -= total("random_labels", z) - total("random_labels", reference)
            case "simnpo":
                margin = total("nll", z) / len(where) - 0.5
            case _:
                terms.append([naive_token(name, z[b, t], reference[b, t], a) for t, a in where])
                continue
        terms.append([2 / BETA * float(np.logaddexp(0, -BETA * margin))])
    flat = [term for row_terms in terms for term in row_terms]
    return sum(flat) / len(flat)


@given(batch=batches())
@settings(deadline=None, max_examples=60)
def test_losses_equal_a_float64_loop_over_tokens(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    for name, loss in losses_for(labels).items():
        expected = naive(name, logits, labels)
        found = loss(logits, labels).item()
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-5), name


@given(batch=batches(), n_first=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_tokens_left_alone_are_counted_from_the_first_label_of_a_row(
    batch: tuple[Tensor, Tensor], n_first: int
) -> None:
    logits, labels = batch
    kept = labels.clone()
    for row in kept:
        row[(row != IGNORED).nonzero().flatten()[:n_first]] = IGNORED
    if counted_tokens(kept).any():
        found = ceu_loss(logits, labels, ignore_first_tokens=n_first).item()
        assert found == pytest.approx(naive("ceu", logits, kept), rel=2e-5, abs=2e-5)
    else:
        with pytest.raises(ValueError, match="no token counts"):
            ceu_loss(logits, labels, ignore_first_tokens=n_first)
