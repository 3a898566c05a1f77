"""Rows of token ids: cut, chunked, and what is left out of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from core.config import DataConfig, PreparationData, SourceConfig
from core.config.prompting import Prompting
from core.data.counts import Counts
from core.data.prompts import UnreadError, encoded, prompt_and_answer
from core.data.rows import Row
from core.errors import DataError


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one row; the first ``n_context`` are read but not predicted."""

    ids: tuple[int, ...]
    n_context: int

    @property
    def n_counted(self) -> int:
        """Predictions that count: every token after the context, never the first."""
        return len(self.ids) - max(1, self.n_context)


def measured_part(name: str, part: str) -> str:
    """The part of a set that is measured with ``probe`` or ``report``; the forget set is measured whole."""
    return name if name == "forget" else f"{name}_{part}"


@dataclass(frozen=True, kw_only=True)
class TokenSplits:
    """Tokenised rows by part, as :func:`core.data.splits.split_data` makes them.

    ``forget`` is trained on and judged whole. ``*_probe`` is measured during a trial, ``*_report`` only at the
    end of a sweep. ``retain_train`` and ``general_train`` feed the retain loss.

    Attributes:
        parts: Part name to rows, each of them once. A document that was cut into chunks is several.
        identity: Part name to a hash of its token ids, 16 hex digits.
        forget_rows: The row that each of ``parts["forget"]`` was made of, at the same index.
        counts: Part name to what was read for it and what is left out.
    """

    parts: dict[str, tuple[TokenRow, ...]]
    identity: dict[str, str]
    forget_rows: tuple[Row, ...] = ()
    counts: dict[str, Counts] = field(default_factory=dict)

    def __getitem__(self, part: str) -> tuple[TokenRow, ...]:
        """Rows of one part, such as ``retain_probe``."""
        return self.parts[part]


@dataclass(frozen=True, kw_only=True)
class TokenisedRow:
    """A row of a source, and the rows of token ids that it became.

    Attributes:
        row: The row.
        pieces: It, cut; or its chunks; none if it is blank or too short.
        cut_tokens: Tokens that were cut off.
        dropped_tokens: Tokens of a last chunk that was too short.
        short_tokens: Its tokens, if nothing of them would be predicted.
    """

    row: Row
    pieces: tuple[TokenRow, ...]
    cut_tokens: int = 0
    dropped_tokens: int = 0
    short_tokens: int = 0


SHORTEST_CHUNK = 5
"""Tokens below which the last chunk of a document is dropped."""


def tokenise_row(
    row: Row,
    tokenizer: Any,
    *,
    config: DataConfig | PreparationData,
    role: str,
    vocabulary: int | None = None,
) -> TokenisedRow:
    """A row as its role's source wants it: cut, or cut into chunks.

    Args:
        row: The row.
        tokenizer: A tokenizer of transformers.
        config: The data of the trial.
        role: ``forget``, ``retain``, ``approximate`` or ``general``; its ``max_tokens`` and ``overlong`` hold.
        vocabulary: Token ids from 0 up to this, exclusive, are known; not checked if absent.

    Returns:
        One piece of at most ``max_tokens`` tokens. Of a longer document that is chunked, those of consecutive
        ``max_tokens`` tokens without a last one under 5 tokens. None of a blank row, or of one so short that
        nothing of it would be predicted.

    Raises:
        DataError: If the prompt alone fills ``max_tokens``, a token id is not in the vocabulary, or every chunk
            would be too short.

    References:
        Yao et al., "Machine Unlearning of Pre-trained Large Language Models", ACL 2024;
        ``llm_tokenize_with_chunk.py:tokenize``. Deviations: chunks are not padded to ``max_tokens``, and a
        document that needs no chunks is kept however short it is.
    """
    source: SourceConfig = getattr(config, role)
    where = f"{role}, {row.place}" if row.place else role
    if row.is_blank:
        return TokenisedRow(row=row, pieces=())
    ids, n_context = _ids(row, tokenizer, config, where=where)
    if vocabulary is not None:
        _refuse_unknown(row, ids, vocabulary, role)
    limit = source.max_tokens
    if len(ids) > limit and row.prompt is None and source.is_chunked(role):
        return _chunked(row, ids, max_tokens=limit, role=role)
    if len(ids) <= limit and TokenRow(tuple(ids), n_context).n_counted < 1:
        return TokenisedRow(row=row, pieces=(), short_tokens=len(ids))
    piece = cut_row(row, ids, n_context, max_tokens=limit, where=where)
    return TokenisedRow(row=row, pieces=(piece,), cut_tokens=len(ids) - len(piece.ids))


def _chunked(row: Row, ids: Sequence[int], *, max_tokens: int, role: str) -> TokenisedRow:
    if max_tokens < SHORTEST_CHUNK:
        raise DataError(
            f"data.{role}: every chunk of {row.place or repr(row.answer[:60])} would have fewer than "
            f"{SHORTEST_CHUNK} tokens (max_tokens={max_tokens}); raise max_tokens, or use overlong: cut"
        )
    pieces = [ids[start : start + max_tokens] for start in range(0, len(ids), max_tokens)]
    dropped = pieces.pop() if len(pieces[-1]) < SHORTEST_CHUNK else ()
    return TokenisedRow(
        row=row, pieces=tuple(TokenRow(tuple(p), 0) for p in pieces), dropped_tokens=len(dropped)
    )


def tokenise(
    row: Row,
    tokenizer: Any,
    *,
    max_tokens: int,
    where: str,
    prompting: Prompting = Prompting(),  # noqa: B008 - frozen
) -> TokenRow:
    """Token ids of a row, cut after ``max_tokens``; an answer to a prompt ends with the end of text.

    See :func:`core.data.prompts.prompt_and_answer` for how the two are written.

    Raises:
        DataError: If nothing of the row would be predicted, or the prompt cannot be written as asked.

    References:
        Cha et al., ICLR 2025, ``data_module.py:convert_raw_data_to_model_format``; open-unlearning,
        ``preprocess_chat_instance``. Deviations: the attention mask is 1 on a final end of text that counts
        (theirs is 0 there, as on padding), and a row that is cut does not end with it (open-unlearning
        adds it after the cut).
    """
    ids, n_context = _ids(row, tokenizer, prompting, where=where)
    return cut_row(row, ids, n_context, max_tokens=max_tokens, where=where)


def cut_row(
    row: Row, ids: Sequence[int], n_context: int, *, max_tokens: int, where: str
) -> TokenRow:
    """The first ``max_tokens`` ids of a row, refused if none of them would be predicted."""
    result = TokenRow(tuple(ids[:max_tokens]), n_context)
    if result.n_counted < 1:
        raise DataError(
            f"data ({where}): no token of {row.answer[:60]!r} would be predicted: {len(ids)} tokens, "
            f"{n_context} of them context, max_tokens={max_tokens}; raise max_tokens or drop the row"
        )
    return result


def _ids(
    row: Row, tokenizer: Any, prompting: Prompting, *, where: str
) -> tuple[Sequence[int], int]:
    if row.token_ids is not None:
        return row.token_ids, 0
    try:
        if row.prompt is None:
            return encoded(row.answer, tokenizer), 0
        return prompt_and_answer(
            row.prompt, row.answer, tokenizer, prompting=prompting, before=row.before, where=where
        )
    except UnreadError as err:
        raise DataError(f"data ({where}): {err}") from err


def _refuse_unknown(row: Row, ids: Sequence[int], vocabulary: int, role: str) -> None:
    unknown = [i for i in ids if not 0 <= i < vocabulary]
    if not unknown:
        return
    place = row.place or repr(row.answer[:60])
    blame = (
        "this file belongs to another tokenizer, write it anew with the model's"
        if row.token_ids is not None
        else "tokenizer and model do not belong together, take both from one source"
    )
    raise DataError(
        f"data.{role}: {place}: token id {unknown[0]} is outside the vocabulary of {vocabulary}; {blame}"
    )
