"""What was read of a part's sources, and what of it is left out. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows and tokens of one part, or of several together.

    Every token that is read is kept, repeated, cut, dropped or too few:
    ``read_tokens = tokens + repeated_tokens + cut_tokens + dropped_tokens + short_tokens``.

    Attributes:
        read_rows: Rows of the source: documents, or prompts with their answers; blank ones too.
        read_tokens: Their tokens, prompts, templates and special tokens included.
        rows: Rows of token ids that the part has; a document that is chunked is several.
        tokens: Their tokens.
        repeated_rows: Rows of token ids that are left out because the part has an equal one.
        repeated_tokens: Their tokens.
        cut_rows: Rows that are longer than ``max_tokens`` and were cut.
        cut_tokens: Tokens that were cut off.
        dropped_chunks: Last chunks of documents that were dropped because they were too short.
        dropped_tokens: Their tokens.
        blank_rows: Rows without text, which are left out.
        short_rows: Rows that are left out because nothing of them would be predicted, such as those of one token.
        short_tokens: Their tokens.
    """

    read_rows: int = 0
    read_tokens: int = 0
    rows: int = 0
    tokens: int = 0
    repeated_rows: int = 0
    repeated_tokens: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped_chunks: int = 0
    dropped_tokens: int = 0
    blank_rows: int = 0
    short_rows: int = 0
    short_tokens: int = 0

    @property
    def leaves_out(self) -> bool:
        """Whether anything that was read is in no row of token ids, or was there already."""
        return self.read_tokens != self.tokens or self.blank_rows + self.short_rows > 0


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of counts, field by field, such as a role's from its parts'."""
    found = list(counts)
    return Counts(**{f.name: sum(getattr(c, f.name) for c in found) for f in fields(Counts)})
