"""Which columns of files of one's own hold their text, where the files' first rows do not say it by known names."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from core.config import FieldNames, SourceConfig
from core.data.files import format_of
from core.data.rows import Record, has_fields, known_shape
from core.data.sources import is_at_hand, read_records
from core.errors import ConfigError, UserError

FLAGS: Final[Mapping[str, str]] = {
    "prompt": "--prompt-field",
    "answer": "--answer-field",
    "text": "--text-field",
}
"""Key of ``fields`` to the option that names its column."""


def named_columns(
    *, prompt: str | None, answer: str | None, text: str | None
) -> tuple[FieldNames, ...]:
    """What the options name: a pair of prompt and answer, a text, or both, for files of both forms.

    Raises:
        UserError: If one of the pair is named without the other.
    """
    if (prompt is None) != (answer is None):
        given, absent = ("prompt", "answer") if answer is None else ("answer", "prompt")
        raise UserError(
            f"{FLAGS[given]}: got {prompt if answer is None else answer!r} without {FLAGS[absent]}; give both, or "
            f"{FLAGS['text']} for rows that are documents"
        )
    pair = () if prompt is None else (FieldNames(prompt=prompt, answer=answer),)
    return pair if text is None else (*pair, FieldNames(text=text))


def unknown_columns(source: str, *, role: str, named: Sequence[FieldNames]) -> list[str]:
    """Columns of a file that has neither known nor named ones; none of any other source.

    Args:
        source: As the sweep file has it.
        role: Its role, for messages.
        named: What a person named.

    Raises:
        DataError: If the file is missing, unreadable or empty.
    """
    record = _first_record(source, role)
    if record is None or known_shape(record) is not None or _found_in(record, named) is not None:
        return []
    return list(record)


def fields_by_role(
    sources: Mapping[str, str], named: Sequence[FieldNames], *, where: str
) -> dict[str, FieldNames]:
    """The roles that need ``fields`` in the sweep file: those whose files have named columns.

    A data set of the hub is not looked at here: it gets what is named and what no file has.

    Args:
        sources: Role to source, as the sweep file has them.
        named: What a person named.
        where: The sweep file, for messages.

    Raises:
        ConfigError: If a file has neither known nor named columns, or what is named is nowhere; all at once.
        DataError: If a file is missing, unreadable or empty.
    """
    records = {role: _first_record(source, role) for role, source in sources.items()}
    read = {role: record for role, record in records.items() if record is not None}
    fields = {role: names for role, r in read.items() if (names := _found_in(r, named)) is not None}
    problems = [
        f"data.{role}: {sources[role]} has the columns {_listed(record)}, and none is known to hold its text; name "
        f"them: {FLAGS['prompt']} and {FLAGS['answer']}, or {FLAGS['text']}"
        for role, record in read.items()
        if role not in fields and known_shape(record) is None
    ]
    nowhere = [names for names in named if not any(has_fields(r, names) for r in read.values())]
    on_hub = [role for role, source in sources.items() if source.startswith("hub:")]
    if nowhere and on_hub:
        fields |= dict.fromkeys(on_hub, nowhere[0])
    else:
        problems += [_nowhere(names, read.values()) for names in nowhere]
    if problems:
        raise ConfigError(where, problems)
    return fields


def _first_record(source: str, role: str) -> Record | None:
    """The first record of a file with columns; ``None`` of token ids, of shipped texts, and of what is not here."""
    config = SourceConfig(source=source, n=1)
    if not is_at_hand(config) or format_of(Path(source)) in (None, ".npy"):
        return None
    return read_records(config, role=role)[0]


def _found_in(record: Record, named: Sequence[FieldNames]) -> FieldNames | None:
    return next((names for names in named if has_fields(record, names)), None)


def _nowhere(names: FieldNames, records: Iterable[Record]) -> str:
    said = _names_of(names)
    flags, wanted = " and ".join(FLAGS[key] for key in said), " and ".join(map(repr, said.values()))
    columns = _listed(dict.fromkeys(name for record in records for name in record))
    return f"{flags}: no file has {wanted}; columns are {columns or 'none'}"


def _names_of(names: FieldNames) -> dict[str, str]:
    found: dict[str, str] = names.model_dump(exclude_none=True)
    return found


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns))
