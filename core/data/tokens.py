"""Tokenised rows, batches of them, and the order in which a trial reads them."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.config import DataConfig
from core.data.sources import Row
from core.data.splits import Splits
from core.errors import DataError
from core.losses import IGNORED
from core.seeding import derive_seed


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one row; the first ``n_context`` are read but not predicted."""

    ids: tuple[int, ...]
    n_context: int

    @property
    def n_counted(self) -> int:
        """Predictions that count: every token after the context, never the first."""
        return len(self.ids) - max(1, self.n_context)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded rows on a device; shapes ``(B, T)``."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    n_counted: int


@dataclass(frozen=True, kw_only=True)
class TokenSplits:
    """Tokenised rows by part; see :class:`core.data.splits.Splits`.

    Attributes:
        parts: Part name to rows.
        identity: Part name to a hash of its token ids, 16 hex digits.
    """

    parts: dict[str, tuple[TokenRow, ...]]
    identity: dict[str, str]

    def __getitem__(self, part: str) -> tuple[TokenRow, ...]:
        """Rows of one part, such as ``retain_probe``."""
        return self.parts[part]


def tokenise_splits(splits: Splits, config: DataConfig, tokenizer: Any) -> TokenSplits:
    """Tokenise every part.

    Raises:
        DataError: If nothing of a row would be predicted.
    """
    parts = {}
    for name, rows in vars(splits).items():
        role = name.partition("_")[0]
        limit = getattr(config, role).max_tokens
        parts[name] = tuple(tokenise(row, tokenizer, max_tokens=limit, where=name) for row in rows)
    return TokenSplits(parts=parts, identity={name: _hash(rows) for name, rows in parts.items()})


def tokenise(row: Row, tokenizer: Any, *, max_tokens: int, where: str) -> TokenRow:
    """Token ids of a row, cut after ``max_tokens``; an answer to a prompt ends with the end of text."""
    if row.prompt is None:
        ids, n_context = tokenizer(row.answer)["input_ids"], 0
    else:
        ids = tokenizer(row.prompt)["input_ids"]
        n_context = len(ids)
        ids = ids + tokenizer(" " + row.answer, add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
    result = TokenRow(tuple(ids[:max_tokens]), n_context)
    if result.n_counted < 1:
        raise DataError(
            f"data ({where}): no token of {row.answer[:60]!r} would be predicted: {len(ids)} tokens, "
            f"{n_context} of them context, max_tokens={max_tokens}; raise max_tokens or drop the row"
        )
    return result


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


def reading_order(rows: Sequence[TokenRow], *, seed: int, purpose: str) -> Iterator[TokenRow]:
    """Rows for ever: shuffled anew for each pass, the same for every rank and micro-batch layout."""
    for epoch in range(2**31):
        order = list(rows)
        random.Random(derive_seed(seed, purpose, epoch)).shuffle(order)  # noqa: S311
        yield from order


def _hash(rows: Sequence[TokenRow]) -> str:
    return hashlib.sha256(repr([(row.ids, row.n_context) for row in rows]).encode()).hexdigest()[
        :16
    ]
