"""A row of text, and the forms of records that it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from string import ascii_uppercase
from typing import Any

from core.config import FieldNames
from core.errors import DataError

Record = Mapping[str, Any]
Message = tuple[str, str]
"""Who speaks (``system``, ``user`` or ``assistant``), and what is said."""

CONVERSATIONS = ("messages", "conversations")
"""Fields that hold a conversation where nothing else is said."""

KNOWN_SHAPES: Sequence[FieldNames] = (
    FieldNames(text="text"),
    *(FieldNames(messages=name) for name in CONVERSATIONS),
    FieldNames(prompt="question", answer="answer"),
    FieldNames(prompt="instruction", input="input", answer="output"),
    FieldNames(prompt="instruction", input="context", answer="response"),
    FieldNames(prompt="prompt", answer="answer"),
    FieldNames(prompt="prompt", answer="completion"),
    FieldNames(prompt="prompt", answer="response"),
    FieldNames(prompt="prompt", answer="gt"),
)
"""Fields of records as people have them, in the order in which they are looked for; ``input`` may be absent."""

_SPEAKERS: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Row:
    """One row of text: ``prompt`` is read only, ``answer`` is predicted and counts.

    Attributes:
        prompt: Context of the answer; ``None`` for a document.
        answer: The answer, or the whole document; empty for a row of token ids, and for a blank one.
        alternative: Another answer, where the source names a field for it.
        token_ids: A document that is already tokenised.
        before: What was said before the prompt, in a conversation.
        place: Source and number of the row, for messages; two rows that differ in it only are equal.
    """

    prompt: str | None
    answer: str
    alternative: str | None = None
    token_ids: tuple[int, ...] | None = None
    before: tuple[Message, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def is_blank(self) -> bool:
        """Whether the source has nothing to learn here: such a row is counted and left out."""
        return self.token_ids is None and not self.answer


def known_shape(record: Record) -> FieldNames | None:
    """The first of :data:`KNOWN_SHAPES` whose fields a record has, or ``None``."""
    for shape in KNOWN_SHAPES:
        if has_fields(record, shape):
            return shape
    return None


def has_fields(record: Record, names: FieldNames) -> bool:
    """Whether a record has all fields that are named; ``input`` may be absent."""
    needed = names.model_dump(exclude_none=True, exclude={"input"})
    return all(name in record for name in needed.values())


def shape_of(record: Record) -> FieldNames:
    """The :func:`known_shape` of a record; ``text`` if it has none."""
    return known_shape(record) or KNOWN_SHAPES[0]


def asks_with_choices(record: Record) -> bool:
    """Whether a record is a multiple-choice question, as those of MMLU and WMDP."""
    return "text" not in record and all(
        name in record for name in ("question", "choices", "answer")
    )


def to_row(record: Record, fields: FieldNames, *, place: str, where: str) -> Row:
    """A record as a row; without prompt and answer, ``is_blank``, if a text that it needs is blank.

    Args:
        record: Field names to values.
        fields: The fields that hold its text.
        place: Source and number of the record.
        where: The same, after its place in the configuration, for messages.

    Raises:
        DataError: If a field is missing or holds something else, or the conversation has no last answer.
    """
    if isinstance(record.get("token_ids"), tuple):
        return Row(None, "", token_ids=record["token_ids"], place=place)
    other = None if fields.alternative is None else _text(record, fields.alternative, where) or None
    if fields.text is not None:
        return Row(None, _text(record, fields.text, where), other, place=place)
    if fields.messages is not None:
        said = _conversation(record, fields.messages, where)
        *before, (_, prompt), (_, answer) = said
        if not prompt or not answer:
            return Row(None, "", place=place)
        return Row(prompt, answer, other, before=tuple(before), place=place)
    assert fields.prompt is not None and fields.answer is not None  # FieldNames checks it
    prompt = _text(record, fields.prompt, where)
    if fields.input in record:
        assert fields.input is not None
        prompt = "\n".join(part for part in (prompt, _text(record, fields.input, where)) if part)
    answer = _text(record, fields.answer, where)
    if not prompt or not answer:
        return Row(None, "", place=place)
    return Row(prompt, answer, other, place=place)


def written_out(record: Record, *, where: str) -> Record:
    """A multiple-choice question as its prompt, the right choice with its letter as its answer.

    Raises:
        DataError: If it is none.
    """
    match record:
        case {"question": str(question), "choices": [*choices], "answer": int(answer)} if all(
            isinstance(choice, str) for choice in choices
        ) and 0 <= answer < len(choices) <= len(ascii_uppercase):
            letters = ascii_uppercase[: len(choices)]
            lines = [f"{a}. {choice}" for a, choice in zip(letters, choices, strict=True)]
            prompt = "\n".join([question.strip(), *lines, "Answer:"])
            return {**record, "question": prompt, "answer": lines[answer]}
    raise DataError(
        f"{where}: a question, a list of choices and the number of the right one from 0 expected, got "
        f"{ {name: record.get(name) for name in ('question', 'choices', 'answer')} }"
    )


def _text(record: Record, name: str, where: str) -> str:
    """Text of a field; empty if it is blank or absent from the record's values."""
    value = _value(record, name, where)
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = (
            f"; a conversation is named by fields: {{messages: {name}}}"
            if isinstance(value, list)
            else ""
        )
        raise DataError(f"{where}: field {name!r} must be text, got {_shown(value)}{hint}")
    return _clean(value)


def _value(record: Record, name: str, where: str) -> Any:
    if name in record:
        return record[name]
    near = get_close_matches(name, record, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"{where}: no field {name!r}; fields are {', '.join(map(repr, record))}; {hint}set data.*.fields"
    )


def _clean(text: str) -> str:
    """The text, empty if it is blank."""
    return text if text.strip() else ""


def _conversation(record: Record, name: str, where: str) -> list[Message]:
    """A conversation that ends with a question and its answer; what follows the last answer is left out."""
    value = _value(record, name, where)
    place = f"{where}: field {name!r}"
    if value is None or value == []:
        return [("user", ""), ("assistant", "")]
    if not isinstance(value, list):
        raise DataError(f"{place} must be a list of messages, got {_shown(value)}")
    said = [_message(message, f"{place}, message {i}") for i, message in enumerate(value, start=1)]
    while said and said[-1][0] != "assistant":
        said.pop()
    speakers = [speaker for speaker, _ in said]
    spoken = speakers[1:] if speakers[:1] == ["system"] else speakers
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise DataError(
            f"{place}: user and assistant must take turns, after one system message at most, and the last answer "
            f"counts; got {', '.join(s for s, _ in map(_speaker_of, value))}"
        )
    return said


def _message(message: Any, where: str) -> Message:
    speaker, content = _speaker_of(message)
    if speaker not in _SPEAKERS:
        raise DataError(
            f"{where}: must have a role ({', '.join(dict.fromkeys(_SPEAKERS.values()))}) and a content, or from and "
            f"value, got {_shown(message)}"
        )
    if isinstance(content, list):  # parts, as of chats with pictures
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if len(texts) == len(parts) else content
    if content is not None and not isinstance(content, str):
        raise DataError(f"{where}: what is said must be text, got {_shown(content)}")
    return _SPEAKERS[speaker], _clean(content or "")


def _speaker_of(message: Any) -> tuple[str, Any]:
    """Role and content of a message, in either of the usual wordings."""
    if not isinstance(message, Mapping):
        return "", message
    if "role" in message:
        return str(message["role"]), message.get("content")
    return str(message.get("from", "")), message.get("value")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
