"""Measuring rows: one batching, one table of row metrics, one definition of each."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from core.data.batches import batches_by_length, collate
from core.data.tokens import TokenRow
from core.losses import IGNORED
from core.measuring.meter import Meter
from core.metrics.probes import Level
from core.metrics.rows import ROW_METRICS, RowMetric
from core.model.loading import LoadedModel, forward_of
from core.training.ranks import Group

CPU = torch.device("cpu")
VOCABULARY = 7


def rows_of(*sizes: tuple[int, int]) -> list[TokenRow]:
    """Rows of some lengths and contexts, with ids that tell them apart."""
    return [
        TokenRow(tuple((i + t) % VOCABULARY for t in range(length)), n_context)
        for i, (length, n_context) in enumerate(sizes)
    ]


ROWS = rows_of((5, 2), (3, 0), (9, 4), (4, 3), (6, 0))


class Favouring(nn.Module):
    """Favours the token before plus one, except after token 3."""

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        logits = torch.nn.functional.one_hot((input_ids + 1) % VOCABULARY, VOCABULARY).float() * 4.0
        wrong = torch.nn.functional.one_hot(input_ids, VOCABULARY).float() * 4.0
        return SimpleNamespace(logits=torch.where((input_ids == 3).unsqueeze(-1), wrong, logits))


forward = forward_of(Favouring())


def meter(*, size: int = 2) -> Meter:
    model = LoadedModel(
        network=nn.Identity(), tokenizer=None, identity="-", dtype=torch.float32, device=CPU
    )
    return Meter(model, Group(rank=0, size=1), batch_size=size)


# Batches


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=12),
    size=st.integers(1, 5),
    n_ranks=st.integers(1, 4),
)
def test_every_row_is_in_one_batch_of_one_rank_and_all_ranks_have_as_many(
    lengths: Sequence[int], size: int, n_ranks: int
) -> None:
    rows = rows_of(*((length, 0) for length in lengths))
    by_rank = [
        list(batches_by_length(rows, CPU, size=size, rank=rank, n_ranks=n_ranks))
        for rank in range(n_ranks)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    seen = [place for batches in by_rank for places, _ in batches for place in places]
    assert sorted(seen) == list(range(len(rows)))
    for batches in by_rank:
        for places, batch in batches:
            assert len(places) <= size
            expected = collate(
                [rows[p] for p in places] or [min(rows, key=lambda r: len(r.ids))], CPU
            )
            assert torch.equal(batch.ids, expected.ids)


def test_neighbours_in_length_share_a_batch() -> None:
    found = [places for places, _ in batches_by_length(ROWS, CPU, size=2)]
    assert found == [[1, 3], [0, 4], [2]]


def test_text_labels_count_the_context_and_no_padding() -> None:
    batch = collate(ROWS, CPU)
    whole = collate([TokenRow(row.ids, 0) for row in ROWS], CPU)
    assert torch.equal(batch.text_labels, whole.labels)
    assert bool((batch.labels[0, :2] == IGNORED).all())


# Metrics of rows


def right_share(row: TokenRow, *, first: int) -> float:
    """Share of the tokens from ``first`` on that the model of this file chooses, token by token."""
    ids = row.ids
    right = [ids[t - 1] != 3 and ids[t] == (ids[t - 1] + 1) % VOCABULARY for t in range(len(ids))]
    return sum(right[first:]) / len(right[first:])


@pytest.mark.parametrize("size", [1, 2, 16])
def test_memorization_accuracy_counts_every_token_but_the_first_the_prompt_included(
    size: int,
) -> None:
    """As Jang et al. count; published stop levels refer to it. Exact memorisation counts the answer."""
    found = meter(size=size).row_values(
        forward, ROWS, ("memorization_accuracy", "exact_memorization")
    )
    assert found["memorization_accuracy"] == pytest.approx([right_share(r, first=1) for r in ROWS])
    assert found["exact_memorization"] == pytest.approx(
        [right_share(r, first=max(1, r.n_context)) for r in ROWS]
    )
    assert found["memorization_accuracy"] != found["exact_memorization"]


@pytest.mark.parametrize("name", ROW_METRICS)
def test_a_mean_is_the_mean_of_the_rows(name: str) -> None:
    values = meter().row_values(forward, ROWS, (name,))[name]
    assert all(map(math.isfinite, values))
    assert meter().row_mean(forward, ROWS, name) == pytest.approx(sum(values) / len(values))


def test_a_row_metric_counts_the_answer_or_the_text() -> None:
    counted = {metric.counts for metric in ROW_METRICS.values()}
    assert counted == set(get_args(RowMetric.__annotations__["counts"]))


# Row sums


@pytest.mark.parametrize("size", [1, 2, 16])
def test_sums_of_a_row_are_those_of_the_row_alone_in_the_order_of_the_rows(size: int) -> None:
    """Counted tokens from the row, correct choices by hand, cross-entropy by torch; batches do not matter."""
    found = meter(size=size).row_sums(forward, ROWS)
    for row, (nll, correct, count) in zip(ROWS, found.tolist(), strict=True):
        first = max(1, row.n_context)
        ids = torch.tensor([row.ids])
        logits = forward(ids, torch.ones_like(ids))[0, first - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="sum")
        assert nll == pytest.approx(expected.item(), rel=5e-6)
        assert correct == pytest.approx(count * right_share(row, first=first))
        assert count == row.n_counted


def test_a_level_is_a_mean_over_tokens_not_over_rows() -> None:
    sums = meter().row_sums(forward, ROWS)
    assert meter().level(forward, ROWS) == Level(
        nll=sums[:, 0].sum() / sums[:, 2].sum(), accuracy=sums[:, 1].sum() / sums[:, 2].sum()
    )
    assert meter().level(forward, ROWS).nll != pytest.approx((sums[:, 0] / sums[:, 2]).mean())


def test_no_row_is_long_enough_for_a_long_ngram() -> None:
    assert meter().mean_extraction_likelihood(nn.Identity(), ROWS, n=9) is None
