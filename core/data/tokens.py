"""Tokenised rows, batches of them, and the order in which a trial reads them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config import DataConfig, PreparationData, SourceConfig
from core.config.prompting import Prompting
from core.data.prompts import prompt_and_answer
from core.data.sources import Row
from core.data.splits import Splits
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


@dataclass(frozen=True, kw_only=True)
class TokenSplits:
    """Tokenised rows by part; see :class:`core.data.splits.Splits`.

    Attributes:
        parts: Part name to rows. A row that was cut into chunks is several.
        identity: Part name to a hash of its token ids, 16 hex digits.
        forget_rows: The rows that ``parts["forget"]`` was made of, in its order; see
            :func:`core.data.alternatives.alternative_rows`.
    """

    parts: dict[str, tuple[TokenRow, ...]]
    identity: dict[str, str]
    forget_rows: tuple[Row, ...] = ()

    def __getitem__(self, part: str) -> tuple[TokenRow, ...]:
        """Rows of one part, such as ``retain_probe``."""
        return self.parts[part]


SHORTEST_CHUNK = 5
"""Tokens below which the last chunk of a document is dropped."""


def tokenise_splits(
    splits: Splits, config: DataConfig, tokenizer: Any, *, vocabulary: int | None = None
) -> TokenSplits:
    """Tokenise every part, each role as long and cut as its source says.

    Args:
        splits: Rows of every part.
        config: Says ``max_tokens``, ``overlong`` and how prompts are written.
        tokenizer: A tokenizer of transformers.
        vocabulary: Token ids that the model knows; the tokenizer's own number if absent.

    Returns:
        One row for each row, or for each chunk of it.

    Raises:
        DataError: If nothing of a row would be predicted, or a token id is not in the vocabulary.
    """
    limit = len(tokenizer) if vocabulary is None else vocabulary
    parts = {}
    for name, rows in vars(splits).items():
        role = name.partition("_")[0]
        parts[name] = tuple(
            piece
            for row in rows
            for piece in token_rows(row, tokenizer, config=config, role=role, vocabulary=limit)
        )
        if rows and not parts[name]:
            raise DataError(
                f"data.{role}: every chunk of {name} has fewer than {SHORTEST_CHUNK} tokens "
                f"(max_tokens={getattr(config, role).max_tokens}); raise max_tokens, or use overlong: cut"
            )
    return TokenSplits(
        parts=parts,
        identity={name: _hash(rows) for name, rows in parts.items()},
        forget_rows=splits.forget,
    )


def token_rows(
    row: Row,
    tokenizer: Any,
    *,
    config: DataConfig | PreparationData,
    role: str,
    vocabulary: int | None = None,
) -> tuple[TokenRow, ...]:
    """A row as its role's source wants it: cut, or cut into chunks.

    Args:
        row: The row.
        tokenizer: A tokenizer of transformers.
        config: The data of the trial.
        role: ``forget``, ``retain``, ``approximate`` or ``general``; its ``max_tokens`` and ``overlong`` hold.
        vocabulary: Token ids from 0 up to this, exclusive, are known; not checked if absent.

    Returns:
        One row, or under ``overlong: chunk`` those of consecutive ``max_tokens`` tokens; a last one under
        5 tokens is dropped, so there may be none. Only documents are chunked: an answer belongs to its prompt.

    Raises:
        DataError: If nothing of the row would be predicted, or a token id is not in the vocabulary.

    References:
        Yao et al., "Machine Unlearning of Pre-trained Large Language Models", ACL 2024;
        ``llm_tokenize_with_chunk.py:tokenize``. Deviation: chunks are not padded to ``max_tokens``.
    """
    source: SourceConfig = getattr(config, role)
    where = f"{role}, {row.place}" if row.place else role
    ids, n_context = _ids(row, tokenizer, config, where=where)
    if vocabulary is not None:
        _refuse_unknown(row, ids, vocabulary, role)
    if source.overlong == "chunk" and row.prompt is None:
        starts = range(0, len(ids), source.max_tokens)
        pieces = [ids[start : start + source.max_tokens] for start in starts]
        return tuple(TokenRow(tuple(p), 0) for p in pieces if len(p) >= SHORTEST_CHUNK)
    return (cut_row(row, ids, n_context, max_tokens=source.max_tokens, where=where),)


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
    if row.prompt is None:
        return tokenizer(row.answer)["input_ids"], 0
    return prompt_and_answer(row.prompt, row.answer, tokenizer, prompting=prompting, where=where)


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


def _hash(rows: Sequence[TokenRow]) -> str:
    return hashlib.sha256(repr([(row.ids, row.n_context) for row in rows]).encode()).hexdigest()[
        :16
    ]
