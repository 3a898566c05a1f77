"""The numbers of suites by naive loops of single rows, without padding, batches or caches."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import pytest
import torch
from suite_inputs import END, tokens
from torch import Tensor, nn

from core.data.tokens import TokenRow
from core.metrics.composites import ngram_entropy
from core.model.loading import LoadedModel
from core.suites import SuiteInput


def row_logits(model: LoadedModel, ids: Sequence[int]) -> Tensor:
    """Logits of one row, alone, in float64."""
    with torch.no_grad():
        return model.network(input_ids=torch.tensor([list(ids)])).logits[0].double()  # type: ignore[no-any-return]


def log_probs(model: LoadedModel, row: TokenRow) -> list[float]:
    """Log-probability of each counted token."""
    found = torch.log_softmax(row_logits(model, row.ids), dim=-1)
    first = max(1, row.n_context)
    return [float(found[t - 1, row.ids[t]]) for t in range(first, len(row.ids))]


def hits(model: LoadedModel, row: TokenRow) -> list[bool]:
    """Whether each counted token is the likeliest."""
    chosen = row_logits(model, row.ids).argmax(dim=-1).tolist()
    return [chosen[t - 1] == row.ids[t] for t in range(max(1, row.n_context), len(row.ids))]


def greedy(model: LoadedModel, ids: Sequence[int], n: int, *, end: int | None = END) -> list[int]:
    """The likeliest continuation, one forward pass of the whole row a token."""
    found: list[int] = []
    for _ in range(n):
        token = int(row_logits(model, [*ids, *found])[-1].argmax())
        if token == end:
            break
        found.append(token)
    return found


def text(model: LoadedModel, ids: Sequence[int]) -> str:
    """Token ids as text."""
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))


def row_nll(model: LoadedModel, row: TokenRow) -> float:
    """Mean cross-entropy of a row's counted tokens."""
    values = log_probs(model, row)
    return -sum(values) / len(values)


def probability(model: LoadedModel, row: TokenRow) -> float:
    """Geometric mean of the probabilities of a row's counted tokens."""
    return math.exp(-row_nll(model, row))


def average(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def close(found: float, expected: float, *, within: float = 1e-4) -> None:
    """Assert that two numbers agree to float32."""
    assert found == pytest.approx(expected, rel=within, abs=1e-6)


def pair_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Part of the pairs in which the holdout row scores above the forget row."""
    wins = sum((h > f) + 0.5 * (h == f) for f in forget for h in holdout)
    return wins / (len(forget) * len(holdout))


def forced_strength(model: LoadedModel, row: TokenRow) -> float:
    """Extraction strength with every next token predicted from the true ones."""
    found = hits(model, row)
    return next(1 - k / len(found) for k in range(len(found) + 1) if all(found[k:]))


_ANSWERS: WeakKeyDictionary[nn.Module, dict[tuple[tuple[int, ...], int], str]] = WeakKeyDictionary()


def naive_answer(model: LoadedModel, row: TokenRow, n: int = 200) -> str:
    """What the model answers to a row's prompt; each is made once."""
    context = row.ids[: row.n_context]
    made = _ANSWERS.setdefault(model.network, {})
    key = (context, n)
    if key not in made:
        made[key] = text(model, greedy(model, context, min(n, 256 - len(context)))).strip()
    return made[key]


def naive_scores(model: LoadedModel, row: TokenRow) -> dict[str, float]:
    """The scores of membership inference of one row."""
    values = sorted(log_probs(model, row))
    found = {"loss": -average(values)}
    found["zlib"] = found["loss"] / len(
        zlib.compress(text(model, row.ids[row.n_context :]).encode())
    )
    for k in (0.3, 0.4, 0.5, 0.6, 1.0):
        found[f"min_k_{k}"] = -average(values[: max(1, int(k * len(values)))])
    found["min_k"] = found.pop("min_k_0.4")
    all_log_probs = torch.log_softmax(row_logits(model, row.ids), dim=-1)
    standardised = []
    for t in range(max(1, row.n_context), len(row.ids)):
        at = all_log_probs[t - 1]
        mu = float((at.exp() * at).sum())
        variance = float((at.exp() * (at - mu) ** 2).sum())
        standardised.append((float(at[row.ids[t]]) - mu) / math.sqrt(max(variance, 1e-6)))
    lowest = sorted(standardised)[: max(1, int(0.4 * len(standardised)))]
    found["min_k_plus_plus"] = -average(lowest)
    return found


def naive_fluency(model: LoadedModel, given: SuiteInput, role: str) -> float:
    """Mean n-gram entropy of a role's answers."""
    answers = [naive_answer(model, row) for row in tokens(given, role)]
    return average([ngram_entropy(answer.split()) for answer in answers])


def agree(found: Mapping[str, float], expected: Mapping[str, float]) -> None:
    """Assert that what is expected was found."""
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
