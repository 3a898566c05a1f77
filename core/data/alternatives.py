"""Alternative answers of the forget set, for the losses that move the model towards another answer."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from core.config import DataConfig
from core.config.method import Alternatives
from core.data.prompts import continuation
from core.data.rows import Row
from core.data.tokens import TokenRow, cut_row, tokenise
from core.errors import DataError
from core.seeding import derive_seed

CONTEXT_SHARE = 4
"""One token in so many of a document is the context of its alternative."""

_REFUSALS = Path(__file__).parent / "embedded" / "refusals.jsonl"


def alternative_rows(
    pieces: Sequence[TokenRow],
    rows: Sequence[Row],
    tokenizer: Any,
    config: DataConfig,
    *,
    alternatives: Alternatives,
    seed: int,
) -> tuple[TokenRow, ...]:
    """An alternative for each tokenised forget row, at the same index.

    A row with a prompt keeps its prompt and gets the alternative as its answer. Of a document, or of each
    chunk of a long one, the first quarter of the tokens (at least one) is context, and
    the alternative and the end of text follow; what the document says there is gone.

    Args:
        pieces: The forget set, ``parts["forget"]`` of :class:`core.data.tokens.TokenSplits`.
        rows: The row that each was made of, its ``forget_rows``.
        tokenizer: A tokenizer of transformers.
        config: The data of the trial; ``forget.max_tokens`` holds for alternatives too.
        alternatives: ``idk`` draws a shipped refusal for each row; ``field`` takes the row's own.
        seed: Seed of the draw.

    Returns:
        As many rows as there are pieces, in the same order.

    Raises:
        DataError: If ``field`` is asked for and a row has no alternative, or nothing of one would be predicted.

    References:
        Maini et al., "TOFU", COLM 2024, whose refusals answer questions only. Deviations: ours are other
        sentences, and the quarter of a document is our own.
    """
    draw = random.Random(derive_seed(seed, "alternatives"))  # noqa: S311
    found: list[TokenRow] = []
    for piece, row in zip(pieces, rows, strict=True):
        text = draw.choice(refusals()) if alternatives == "idk" else _own(row, config)
        found.append(_alternative(row, piece, text, tokenizer, config))
    return tuple(found)


def _own(row: Row, config: DataConfig) -> str:
    if row.alternative is None:
        named = config.forget.fields.alternative
        raise DataError(
            f"method.alternatives: field needs an alternative answer in every forget row, "
            f"{row.place or repr(row.answer[:60])} has none (data.forget.fields.alternative: {named}); "
            "name the field that holds it, or use idk"
        )
    return row.alternative


def _alternative(
    row: Row, piece: TokenRow, text: str, tokenizer: Any, config: DataConfig
) -> TokenRow:
    limit, where = config.forget.max_tokens, "alternatives of forget"
    if row.prompt is not None:
        return tokenise(
            replace(row, answer=text),
            tokenizer,
            max_tokens=limit,
            where=where,
            prompting=config,
        )
    n_context = max(1, len(piece.ids) // CONTEXT_SHARE)
    ids = [*piece.ids[:n_context], *continuation(" " + text, tokenizer)]
    return cut_row(Row(None, text), ids, n_context, max_tokens=limit, where=where)


@cache
def refusals() -> tuple[str, ...]:
    """The shipped refusals, in the file's order."""
    lines = _REFUSALS.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines)
