"""Read rows: embedded files, files of one's own, benchmarks by name, hub data sets."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from core.config import SourceConfig
from core.config.data import FieldNames, RowShare
from core.data.benchmarks import BENCHMARKS, NAMED, name_problem, named_fields
from core.data.files import ENDINGS, file_records, format_of
from core.data.rows import Record, Row, asks_with_choices, shape_of, to_row, written_out
from core.errors import DataError, foreign, in_a_line

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the shipped texts; ``embedded:NAME`` is its ``NAME.jsonl``."""

_OLD_FIELDS = frozenset({"text", "prompt", "answer", "alternative"})
"""Records of old trials give all of these for every source, with ``text: text`` where nothing was said."""


def source_problem(config: SourceConfig) -> str | None:
    """What is wrong with a source as far as can be told without reading it, or ``None``."""
    kind, _, name = config.source.partition(":")
    if kind in NAMED:
        return name_problem(config.source) or _named_problem(config) or _mirror_problem(config)
    if kind == "hub":
        valid = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)
        if not valid:
            return f"source: hub:ORG/NAME expected, got {config.source!r}"
        return _mirror_problem(config)
    if config.mirror is not None:
        return (
            f"mirror: only a hub data set has one, got mirror={config.mirror!r} with "
            f"source={config.source!r}; remove it"
        )
    ignored = _hub_only_problem(config)
    if ignored:
        return ignored
    if kind == "embedded":
        known = sorted(p.stem for p in EMBEDDED.glob("*.jsonl"))
        if name in known:
            return None
        listed = ", ".join(f"embedded:{k}" for k in known)
        return f"source: no embedded text {config.source!r}; known: {listed}"
    return _file_problem(config)


def _named_problem(config: SourceConfig) -> str | None:
    """A benchmark's name says subset and split; the shipped authors have no repository either."""
    names = ["subset", "split"]
    if config.source.startswith("authors:"):
        names = ["mirror", "revision", *names]
    ignored = next((name for name in names if config.differs(name)), None)
    if ignored is None:
        return None
    return (
        f"{ignored}: has no effect on {config.source!r}, got {getattr(config, ignored)!r}; remove it, "
        "or name the data set as hub:ORG/NAME"
    )


def _mirror_problem(config: SourceConfig) -> str | None:
    if config.mirror is None or Path(config.mirror).is_dir():
        return None
    return (
        f"mirror: folder {config.mirror!r} does not exist; copy the data set's repository there, "
        "README.md included"
    )


def _hub_only_problem(config: SourceConfig) -> str | None:
    """A file has neither splits nor subsets nor revisions; ``split: train`` is what loaders call all of it."""
    ignored = next((name for name in ("split", "subset", "revision") if config.differs(name)), None)
    if ignored is None:
        return None
    value = getattr(config, ignored)
    part = re.fullmatch(r"\w+\[(\d*):(\d*)\]", value) if ignored == "split" else None
    instead = "" if part is None else f", and use rows: [{part[1] or 0}, {part[2] or 'null'}]"
    return (
        f"{ignored}: only a hub data set has one, got {ignored}={value!r} with source={config.source!r}; "
        f"remove it{instead}"
    )


def _file_problem(config: SourceConfig) -> str | None:
    path = Path(config.source)
    form = format_of(path)
    if path.is_dir():
        return f"source: {config.source!r} is a folder; name a file in it"
    if form is None:
        kind, colon, _ = config.source.partition(":")
        near = get_close_matches(kind, NAMED, n=1, cutoff=0.6) if colon else []
        hint = f" (did you mean {near[0]}:?)" if near else ""
        return (
            f"source: {config.source!r} is none of hub:ORG/NAME, embedded:NAME, or a file ending in "
            f"{', '.join(ENDINGS)} (text also with .gz after it); nor a data set by name, "
            f"{', '.join(f'{n}:' for n in sorted(NAMED))}{hint}"
        )
    if form == ".npy" and _is_said(config.fields):
        return f"fields: {config.source!r} holds token ids and has no fields; remove it"
    return None if path.is_file() else f"source: file {config.source!r} does not exist"


def is_at_hand(config: SourceConfig) -> bool:
    """Whether a source is on this machine for sure, and is read without the library of the hub's data sets."""
    kind = config.source.partition(":")[0]
    return kind != "hub" and (kind not in NAMED or kind == "authors")


def read_records(config: SourceConfig, *, role: str) -> list[Record]:
    """The chosen records of a source with all their fields, in its order: the first ``config.n`` of ``config.rows``.

    A record of a ``.txt`` file has the field ``text``, one of a ``.npy`` file the field ``token_ids``.

    Args:
        config: The source.
        role: Its place in the configuration, ``data.ROLE``, for messages.

    Raises:
        DataError: If the source is unknown, missing, unreadable or empty, or has fewer rows than are asked for.
    """
    return [record for _, record in islice(_numbered(config, role), config.n)]


def rows_and_records(config: SourceConfig, *, role: str) -> Iterator[tuple[Row, Record]]:
    """The chosen rows of a source, in its order, each with the record that it was made of; read as asked for.

    ``config.n`` of them are not blank; blank ones are among them, to be counted and left out.

    Raises:
        DataError: As :func:`read_records`; if a row lacks a field, or all are blank.
    """
    fields, is_choices = _fields_of_name(config)
    n_rows, n_full = 0, 0
    for number, record in _numbered(config, role):
        if n_full == config.n:
            return
        place = f"{config.source} row {number}"
        where = f"data.{role}: {place}"
        if not fields.is_given:
            is_choices = asks_with_choices(record)
            fields = shape_of(record).model_copy(update={"alternative": fields.alternative})
        shown = written_out(record, where=where) if is_choices else record
        row = to_row(shown, fields, place=place, where=where)
        n_rows += 1
        n_full += not row.is_blank
        yield row, record
    if n_full == 0:
        raise DataError(
            f"data.{role}: {config.source} holds no row that is not blank, {n_rows} are; give another source, or "
            "other fields"
        )


def read_rows(config: SourceConfig, *, role: str) -> list[Row]:
    """All rows of :func:`rows_and_records`, blank ones included.

    Raises:
        DataError: As there.
    """
    return [row for row, _ in rows_and_records(config, role=role)]


def _fields_of_name(config: SourceConfig) -> tuple[FieldNames, bool]:
    """The fields of a source as far as they are known, and whether its records are multiple-choice questions."""
    is_named = name_problem(config.source) is None
    if not is_named or _is_said(config.fields):
        return config.fields, False
    known = BENCHMARKS.get(config.source)
    fields = named_fields(config.source).model_copy(
        update={"alternative": config.fields.alternative}
    )
    return fields, known is not None and known.shape == "choices"


def _is_said(fields: FieldNames) -> bool:
    """Whether a user said where the text is."""
    is_old_record = fields == FieldNames(text="text") and fields.model_fields_set == _OLD_FIELDS
    return fields.is_given and not is_old_record


def _numbered(config: SourceConfig, role: str) -> Iterator[tuple[int, Record]]:
    """The records that ``rows`` chooses, each with its number in the source, from 1."""
    problem = source_problem(config)
    if problem:
        raise DataError(f"data.{role}.{problem}")
    found = enumerate(_records(config, role), start=1)
    chosen = _drawn(list(found), config, config.rows) if isinstance(config.rows, RowShare) else None
    n_found = 0
    for number, record in found if chosen is None else chosen:
        n_found = number
        if isinstance(config.rows, tuple):
            low, high = config.rows
            if number <= low:
                continue
            if high is not None and number > high:
                return
        yield number, record
    if n_found == 0:
        raise DataError(
            f"data.{role}: {config.source} holds no row"
            if config.rows is None or isinstance(config.rows, tuple)
            else f"data.{role}.rows: of the rows of {config.source}, none are in the share {list(config.rows.share)}; "
            "raise it"
        )
    if isinstance(config.rows, tuple):
        low, high = config.rows
        if n_found <= low or (high is not None and n_found < high):
            raise DataError(
                f"data.{role}.rows: {list(config.rows)} asks for more rows than {config.source} has, {n_found}; "
                "lower it, or use null for the end"
            )


def _drawn(
    records: Sequence[tuple[int, Record]], config: SourceConfig, chosen: RowShare
) -> list[tuple[int, Record]]:
    """The share of the records, in their order; those with equal text are all in it or all out of it."""
    fields = _fields_of_name(config)[0]
    if records and not fields.is_given:
        fields = shape_of(records[0][1])
    names = fields.model_dump(exclude_none=True, exclude={"alternative"}).values()

    def key(record: Record) -> str:
        held = [record.get(name) for name in names if name in record] or dict(record)
        text = json.dumps([chosen.seed, held], default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    keys = [key(record) for _, record in records]
    order = sorted(set(keys))
    low, high = (round(part * len(order)) for part in chosen.share)
    inside = set(order[low:high])
    return [pair for pair, at in zip(records, keys, strict=True) if at in inside]


def _records(config: SourceConfig, role: str) -> Iterator[Record]:
    kind, _, name = config.source.partition(":")
    if kind == "authors":
        from core.data.authors import author_records  # made when asked for, not read

        return iter(author_records(name))
    if kind in NAMED:
        known = BENCHMARKS[config.source]
        return _hub_records(config, known.repository, known.subset, known.split, role)
    if kind == "hub":
        return _hub_records(config, name, config.subset, config.split, role)
    path = EMBEDDED / f"{name}.jsonl" if kind == "embedded" else Path(config.source)
    return file_records(path, where=f"data.{role}")


def _hub_records(
    config: SourceConfig, repository: str, subset: str | None, split: str, role: str
) -> Iterator[Record]:
    import datasets

    path, revision = repository, config.revision
    if config.mirror is not None:
        path, revision = str(Path(config.mirror).resolve()), None

    def refused(err: Exception) -> DataError:
        first = in_a_line(err.__cause__ or err)
        what = f"{config.source!r} (subset {subset}, split {split})"
        if config.mirror is not None:
            return DataError(
                f"data.{role}.mirror: cannot load {what} from the folder {config.mirror!r}: {first}; "
                f"copy {repository} there once more, its README.md lists the subsets and their files"
            )
        return DataError(
            f"data.{role}.source: cannot load {what}: {first}; check the names and the connection, or "
            "give a file or a mirror"
        )

    with foreign(refused):
        yield from datasets.load_dataset(path, subset, split=split, revision=revision)
