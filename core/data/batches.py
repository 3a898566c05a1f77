"""Padded batches of rows, batches by length, and the order in which a trial reads rows."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.tokens import TokenRow
from core.losses import IGNORED
from core.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded rows on a device; shapes ``(B, T)``.

    Attributes:
        ids: Token ids; 0 on padding.
        mask: 1 on tokens, 0 on padding.
        labels: ``ids``, with ``-100`` on context and padding.
        n_counted: Predictions that count.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    n_counted: int

    @property
    def text_labels(self) -> Tensor:
        """Labels that count the context, too: every token of a row, as in a document."""
        return self.ids.masked_fill(self.mask == 0, IGNORED)


def collate(rows: Sequence[TokenRow], device: torch.device) -> Batch:
    """Pad rows on the right to the longest of them; masks come from lengths, never from a padding id."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.as_tensor(row.ids)
        mask[i, :length] = 1
        labels[i, row.n_context : length] = ids[i, row.n_context : length]
    return Batch(
        ids=ids.to(device),
        mask=mask.to(device),
        labels=labels.to(device),
        n_counted=sum(row.n_counted for row in rows),
    )


def batches_by_length(
    rows: Sequence[TokenRow], device: torch.device, *, size: int, rank: int = 0, n_ranks: int = 1
) -> Iterator[tuple[list[int], Batch]]:
    """As :func:`rows_by_length`, padded on a device."""
    for places, chosen in rows_by_length(rows, size=size, rank=rank, n_ranks=n_ranks):
        yield places, collate(chosen, device)


def rows_by_length(
    rows: Sequence[TokenRow], *, size: int, rank: int = 0, n_ranks: int = 1
) -> Iterator[tuple[list[int], list[TokenRow]]]:
    """Some rows of like length at a time; the one way in which rows are measured.

    Args:
        rows: In any order; rows of one length keep theirs.
        size: Rows of a batch; the last one may have fewer.
        rank: This rank; rows are dealt out to the ranks in turn.
        n_ranks: Number of ranks.

    Yields:
        Places of a batch's rows in ``rows``, and the rows. Every rank gets as many batches, for ZeRO 3
        gathers weights on all of them together: one without rows left gets no places and the shortest row.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    mine = order[rank::n_ranks]
    for i in range(-(-len(order) // (size * n_ranks))):
        places = mine[i * size : (i + 1) * size]
        yield places, [rows[place] for place in places or order[:1]]


def reading_order(rows: Sequence[TokenRow], *, seed: int, purpose: str) -> Iterator[TokenRow]:
    """Rows for ever: shuffled anew for each pass, the same for every rank and micro-batch layout."""
    for epoch in range(2**31):
        order = list(rows)
        random.Random(derive_seed(seed, purpose, epoch)).shuffle(order)  # noqa: S311
        yield from order
