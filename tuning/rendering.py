"""A row of each role as the model reads it: what is context, and what counts."""

from dataclasses import dataclass
from typing import Any

from core.data.tokens import TokenRow, TokenSplits

LONGEST = 400
"""Characters of a text that are shown; of a longer one its beginning and its end."""


@dataclass(frozen=True, kw_only=True)
class RenderedRow:
    """A row of token ids as text, special tokens written out.

    Attributes:
        context: What is read and does not count; empty for a document.
        counted: What is predicted.
        n_context: Tokens of the one.
        n_counted: Tokens of the other.
    """

    context: str
    counted: str
    n_context: int
    n_counted: int


def rendered_rows(splits: TokenSplits, tokenizer: Any) -> dict[str, RenderedRow]:
    """The first row of each role, as its first part has it."""
    found: dict[str, RenderedRow] = {}
    for part, rows in splits.parts.items():
        role = part.partition("_")[0]
        if rows and role not in found:
            found[role] = _rendered(rows[0], tokenizer)
    return found


def rendered_lines(rows: dict[str, RenderedRow]) -> list[str]:
    """For a person: each text in quotes, so that spaces at its ends are seen."""
    lines = [
        "a row of each role as the model reads it; only what is counted is trained on and judged:"
    ]
    for role, row in rows.items():
        if row.context:
            lines.append(f"  {role} context ({row.n_context} tokens): {_short(row.context)!r}")
        lines.append(f"  {role} counted ({row.n_counted} tokens): {_short(row.counted)!r}")
    return lines


def _rendered(row: TokenRow, tokenizer: Any) -> RenderedRow:
    n_context = row.n_context
    return RenderedRow(
        context=_text(row.ids[:n_context], tokenizer),
        counted=_text(row.ids[n_context:], tokenizer),
        n_context=n_context,
        n_counted=row.n_counted,
    )


def _text(ids: tuple[int, ...], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} [...] {text[-half:]}"
