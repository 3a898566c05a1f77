"""The rows that suites read, and their token ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from core.config import DataConfig, SourceConfig
from core.config.evaluation import EvaluationData
from core.data.counts import Counts
from core.data.positions import refuse_long
from core.data.rows import Row
from core.data.sources import read_records, rows_and_records
from core.data.splits import count, usable
from core.data.tokens import TokenisedRow, TokenRow, tokenise, tokenise_row
from core.errors import DataError
from core.store.artifacts import content_key


@dataclass(frozen=True)
class Example:
    """One row of a role, or one chunk of a document.

    Attributes:
        tokens: Its token ids.
        prompt: Context of the answer; ``None`` for a document.
        answer: The answer, or the whole document.
        record: The record that it was read from, with all its fields.
        place: Source and number of the row, for messages.
    """

    tokens: TokenRow
    prompt: str | None
    answer: str
    record: Mapping[str, Any] = field(compare=False)
    place: str = ""

    @property
    def given_ids(self) -> tuple[int, ...]:
        """What a continuation starts from: the prompt, or the first half of a document, at least a token."""
        return self.tokens.ids[: self._n_given]

    @property
    def rest_ids(self) -> tuple[int, ...]:
        """What follows :attr:`given_ids`."""
        return self.tokens.ids[self._n_given :]

    @property
    def counted_ids(self) -> tuple[int, ...]:
        """The answer's token ids, or the document's."""
        return self.tokens.ids[self.tokens.n_context :]

    @property
    def _n_given(self) -> int:
        is_document = self.prompt is None
        return max(1, len(self.tokens.ids) // 2 if is_document else self.tokens.n_context)


class EvaluationRows:
    """Rows of every role, read and tokenised when they are first asked for."""

    def __init__(
        self,
        data: EvaluationData,
        tokenizer: Any,
        *,
        vocabulary: int,
        positions: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Nothing is read yet; ``limit`` keeps the first rows of each role."""
        self._data, self._tokenizer = data, tokenizer
        self._vocabulary, self._positions, self._limit = vocabulary, positions, limit
        self._examples: dict[str, list[Example]] = {}
        self._records: dict[str, list[Mapping[str, Any]]] = {}
        self._counts: dict[str, Counts] = {}

    @property
    def counts(self) -> dict[str, Counts]:
        """Role to what was read of it and what is left out, of those that were read so far.

        Equal rows are all kept, for the published metrics are means over every row.
        """
        return dict(self._counts)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that have a source, in a fixed order."""
        return tuple(self._data.sources)

    @property
    def identity(self) -> dict[str, str]:
        """Role to a hash of its token ids, or of its records where only they are used; 16 hex digits."""
        read: dict[str, Any] = {role: repr(records) for role, records in self._records.items()}
        for role, examples in self._examples.items():
            read[role] = [(e.tokens.ids, e.tokens.n_context) for e in examples]
        return {role: content_key({"rows": rows})[:16] for role, rows in read.items()}

    @property
    def read(self) -> list[TokenRow]:
        """Token ids of all rows that were asked for so far."""
        return [e.tokens for examples in self._examples.values() for e in examples]

    def examples(self, role: str) -> list[Example]:
        """Rows of a role.

        Raises:
            DataError: If the source is missing or empty, a row lacks a field, or all are blank or too short.
        """
        if role not in self._examples:
            self._examples[role] = self._made(role)
        return self._examples[role]

    def records(self, role: str) -> list[Mapping[str, Any]]:
        """Records of a role with all their fields, whatever their shape.

        Raises:
            DataError: If the source is missing or empty.
        """
        if role not in self._records:
            self._records[role] = read_records(self._source(role), role=role)
        return self._records[role]

    def answer(self, role: str, example: Example, *, question: str, answer: str) -> TokenRow:
        """Another question or answer of a row, written and cut as the row itself is.

        Raises:
            DataError: If nothing of it would be predicted.
        """
        return tokenise(
            Row(question, answer, place=example.place),
            self._tokenizer,
            max_tokens=self._source(role).max_tokens,
            where=f"{role}, {example.place}",
            prompting=self._data,
        )

    def _made(self, role: str) -> list[Example]:
        config = cast(DataConfig, self._data)  # it has the same roles, and how prompts are written
        found: list[Example] = []
        read: list[TokenisedRow] = []
        for row, record in rows_and_records(self._data.sources[role], role=role):
            if self._limit is not None and len(found) >= self._limit:
                break
            tokenised = tokenise_row(
                row, self._tokenizer, config=config, role=role, vocabulary=self._vocabulary
            )
            read.append(tokenised)
            found += [
                Example(piece, row.prompt, row.answer, record, row.place)
                for piece in tokenised.pieces
            ]
        refuse_long(read, self._positions, role=role)
        usable(read, role=role)
        self._counts[role] = count(read, [example.tokens for example in found])
        return found[: self._limit]

    def _source(self, role: str) -> SourceConfig:
        source = self._data.sources[role]
        if self._limit is None:
            return source
        return source.model_copy(update={"n": min(source.n or self._limit, self._limit)})


def text_field(example: Example, role: str, name: str, *, suite: str) -> str:
    """A field of a record that must be text.

    Raises:
        DataError: If the record lacks it or it is blank.
    """
    value = _field(example, role, name, suite=suite)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"data.{role}: {example.place}: field {name!r} must be text that is not blank, got {value!r}"
        )
    return value


def texts_field(example: Example, role: str, name: str, *, suite: str) -> list[str]:
    """A field of a record that must be a list of texts, or one text.

    Raises:
        DataError: If the record lacks it, it is empty or one text is blank.
    """
    value = _field(example, role, name, suite=suite)
    texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list | tuple)
        or not texts
        or not all(isinstance(text, str) and text.strip() for text in texts)
    ):
        raise DataError(
            f"data.{role}: {example.place}: field {name!r} must be a list of texts that are not blank, "
            f"got {value!r}"
        )
    return list(texts)


def question_of(example: Example, role: str, *, suite: str) -> str:
    """The prompt of a row.

    Raises:
        DataError: If the row is a document.
    """
    if example.prompt is None:
        raise DataError(
            f"data.{role}: suite {suite} needs questions with answers, {example.place} is a text; name a source "
            "such as authors:forget, or set fields to {prompt: question, answer: answer}"
        )
    return example.prompt


def _field(example: Example, role: str, name: str, *, suite: str) -> Any:
    if name not in example.record:
        raise DataError(
            f"data.{role}: {example.place} has no field {name!r}, which suite {suite} needs; fields are "
            f"{', '.join(map(repr, example.record))}; name a source that has it, such as authors:{role} or "
            "TOFU's sets whose names end in _perturbed"
        )
    return example.record[name]
