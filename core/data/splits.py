"""Splits by role: what is trained on, what is probed, what is only reported.

Documents are what is split. What may not occur twice is a row of token ids, as the model reads it: none is in
two roles or in two parts, and each is in its part once.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from core.config import DataConfig
from core.data.counts import Counts
from core.data.positions import refuse_long
from core.data.sources import read_rows
from core.data.tokens import TokenisedRow, TokenRow, TokenSplits, tokenise_row
from core.errors import DataError
from core.seeding import derive_seed

ROLES = ("forget", "retain", "approximate", "general")

_CUT = ("retain", "approximate", "general")
"""Roles that are split; the forget set is trained on and judged whole."""

Document = list[TokenisedRow]
"""What is never split: a row of a source, with all that share a row of token ids with it."""


def split_data(
    config: DataConfig,
    tokenizer: Any,
    *,
    vocabulary: int | None = None,
    positions: int | None = None,
) -> TokenSplits:
    """Read all sources, tokenise them and split them; the same configuration and contents give the same splits.

    Two rows are equal if their token ids are, after cutting and chunking: texts that differ in a sign differ, and
    documents whose first ``max_tokens`` tokens agree are one where they are cut there. Within a role, an equal row
    is kept once. Documents that share a row without being equal, such as two versions of an article that are
    chunked, stay together in one part and count as one document: to leave out a shared row only would put the
    rest of the same text on both sides of a split, and to leave out a whole document would lose more than is shared.
    Rows that are blank or too short are left out and counted.

    Args:
        config: The sources, and how they are cut and split.
        tokenizer: A tokenizer of transformers.
        vocabulary: Token ids that the model knows; the tokenizer's own number if absent.
        positions: Tokens of a row that the model can read at most; any if absent.

    Raises:
        DataError: If a source is missing or empty, too small for its parts, two roles share a row of token ids,
            a prompt alone fills ``max_tokens``, a row has more tokens than the model has positions, or a token id
            is not in the vocabulary.
    """
    limit = len(tokenizer) if vocabulary is None else vocabulary
    rows = {
        role: [
            tokenise_row(row, tokenizer, config=config, role=role, vocabulary=limit)
            for row in read_rows(source, role=role)
        ]
        for role, source in config.sources.items()
    }
    for role, found in rows.items():
        refuse_long(found, positions, role=role)
    refuse_overlap(rows)
    parts: dict[str, Sequence[TokenisedRow]] = {"forget": rows["forget"]}
    for role in (role for role in _CUT if role in rows):
        parts |= _cut(role, usable(rows[role], role=role), config)
    usable(rows["forget"], role="forget")
    kept = {name: _distinct(part) for name, part in parts.items()}
    return TokenSplits(
        parts={name: tuple(pieces) for name, pieces in kept.items()},
        identity={name: _hash(list(pieces)) for name, pieces in kept.items()},
        forget_rows=tuple(origin.row for origin in kept["forget"].values()),
        counts=_counts(rows, parts, kept),
    )


def usable(rows: Sequence[TokenisedRow], *, role: str) -> list[TokenisedRow]:
    """Rows without those that are blank or too short.

    Raises:
        DataError: If there are no others.
    """
    found = [row for row in rows if row.pieces]
    if not found:
        n_blank = sum(row.row.is_blank for row in rows)
        raise DataError(
            f"data.{role}: all {len(rows)} rows are blank or too short ({n_blank} blank): nothing of them would be "
            "predicted; give longer texts, or other fields"
        )
    return found


def refuse_small_retain(n_rows: int, batch_rows: int, *, role: str = "retain") -> None:
    """Refuse a retain set of which one optimiser step would read a row twice.

    Args:
        n_rows: Rows that the retain loss is trained on.
        batch_rows: Rows of the retain loss in one optimiser step, over all ranks.
        role: ``retain``, or ``general`` where the retain loss reads that.

    Raises:
        DataError: If there are fewer rows than one step reads.
    """
    if n_rows < batch_rows:
        raise DataError(
            f"data.{role}: {n_rows} rows to train on are fewer than the {batch_rows} of one optimiser step; "
            "give more rows, or lower batch.global_batch_size, data.probe_rows or data.report_rows"
        )


def refuse_overlap(rows: Mapping[str, Sequence[TokenisedRow]]) -> None:
    """Refuse roles that share a row of token ids.

    Args:
        rows: Role to its rows.

    Raises:
        DataError: With both places.
    """
    seen: dict[tuple[int, ...], tuple[str, TokenisedRow]] = {}
    for role, found in rows.items():
        for row in found:
            for piece in row.pieces:
                other, first = seen.setdefault(piece.ids, (role, row))
                if other != role:
                    text = f": {row.row.answer[:60]!r}" if row.row.answer else ""
                    raise DataError(
                        f"data.{role}: {row.row.place} shares a row with data.{other}: {first.row.place}{text}; "
                        f"{len(piece.ids)} token ids are equal after cutting, and the sets must not overlap: "
                        "remove it from one, or raise max_tokens if the texts differ later"
                    )


def count(read: Sequence[TokenisedRow], kept: Sequence[TokenRow]) -> Counts:
    """What was read for a part, and what of it is left out.

    Args:
        read: Its rows.
        kept: Rows of token ids that it has.
    """
    pieces = [piece for row in read for piece in row.pieces]
    n_pieces, n_kept = (sum(len(piece.ids) for piece in found) for found in (pieces, kept))
    cut, dropped = (
        [n for row in read if (n := getattr(row, name))]
        for name in ("cut_tokens", "dropped_tokens")
    )
    n_short = sum(row.short_tokens for row in read)
    return Counts(
        read_rows=len(read),
        read_tokens=n_pieces + sum(cut) + sum(dropped) + n_short,
        rows=len(kept),
        tokens=n_kept,
        repeated_rows=len(pieces) - len(kept),
        repeated_tokens=n_pieces - n_kept,
        cut_rows=len(cut),
        cut_tokens=sum(cut),
        dropped_chunks=len(dropped),
        dropped_tokens=sum(dropped),
        blank_rows=sum(row.row.is_blank for row in read),
        short_rows=sum(not row.pieces and not row.row.is_blank for row in read),
        short_tokens=n_short,
    )


def _counts(
    rows: Mapping[str, Sequence[TokenisedRow]],
    parts: Mapping[str, Sequence[TokenisedRow]],
    kept: Mapping[str, Mapping[TokenRow, TokenisedRow]],
) -> dict[str, Counts]:
    """Counts by part; what of a role that is split is blank or too short is counted under its own name."""
    found = {name: count(part, list(kept[name])) for name, part in parts.items()}
    for role, read in rows.items():
        left_out = [row for row in read if not row.pieces]
        if left_out and role not in parts:
            found[role] = count(left_out, [])
    return found


def _cut(
    role: str, rows: Sequence[TokenisedRow], config: DataConfig
) -> dict[str, Sequence[TokenisedRow]]:
    order = _documents(rows)
    random.Random(derive_seed(config.split_seed, "split", role)).shuffle(order)  # noqa: S311
    if role == "approximate":  # never trained on, and measured once: every row serves
        return _halves(order, config)
    n_probe, n_report = (getattr(rows, role) for rows in (config.probe_rows, config.report_rows))
    needed = n_probe + n_report + (1 if role == "retain" else 0)
    if len(order) < needed:
        raise DataError(
            f"data.{role}: {n_probe} probe rows and {n_report} report rows"
            f"{' and at least one to train on' if role == 'retain' else ''} need {needed} distinct rows, "
            f"got {len(order)}{_shared_by(order)}; give more rows, or lower data.probe_rows or data.report_rows"
        )
    return {
        f"{role}_probe": _rows(order[:n_probe]),
        f"{role}_report": _rows(order[n_probe : n_probe + n_report]),
        f"{role}_train": _rows(order[n_probe + n_report :]),
    }


def _rows(documents: Sequence[Document]) -> list[TokenisedRow]:
    return [row for document in documents for row in document]


def _halves(order: Sequence[Document], config: DataConfig) -> dict[str, Sequence[TokenisedRow]]:
    """The approximate set in two parts, which are measured together; their names stand in the records of runs."""
    more = config.report_rows.retain - config.probe_rows.retain
    n_probe = (len(order) - more) // 2
    if not 0 < n_probe < len(order):
        n_probe = len(order) // 2
    if n_probe == 0:
        raise DataError(
            f"data.approximate: at least 2 distinct rows are needed, got {len(order)}"
            f"{_shared_by(order)}; give more rows"
        )
    return {
        "approximate_probe": _rows(order[:n_probe]),
        "approximate_report": _rows(order[n_probe:]),
    }


def _documents(rows: Sequence[TokenisedRow]) -> list[Document]:
    """Rows that share token ids, also by way of others, in one document each, in the order of their first."""
    home: dict[tuple[int, ...], int] = {}
    above = list(range(len(rows)))

    def first(i: int) -> int:
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    for i, row in enumerate(rows):
        for piece in row.pieces:
            low, high = sorted((first(home.setdefault(piece.ids, i)), first(i)))
            above[high] = low
    found: dict[int, Document] = {}
    for i, row in enumerate(rows):
        found.setdefault(first(i), []).append(row)
    return list(found.values())


def _shared_by(documents: Sequence[Document]) -> str:
    """A remark for the message about too few: the most rows that are one because they share token ids."""
    most = max(documents, key=len)
    if len(most) == 1:
        return ""
    return (
        f", because {len(most)} rows share token ids after cutting and so count as one ({most[0].row.place} is "
        "the first; take out of them what they have in common)"
    )


def _distinct(rows: Sequence[TokenisedRow]) -> dict[TokenRow, TokenisedRow]:
    """Each row of token ids once, in order, with the first row that it came from."""
    found: dict[TokenRow, TokenisedRow] = {}
    for row in rows:
        for piece in row.pieces:
            found.setdefault(piece, row)
    return found


def _hash(rows: Sequence[TokenRow]) -> str:
    return hashlib.sha256(repr([(row.ids, row.n_context) for row in rows]).encode()).hexdigest()[
        :16
    ]
