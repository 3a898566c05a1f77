"""Read rows: embedded files, JSON Lines, Parquet, plain text, token ids, benchmarks by name, hub data sets."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from core.config import SourceConfig
from core.data.benchmarks import BENCHMARKS, NAMED, name_problem, named_fields
from core.data.token_files import read_token_array
from core.errors import DataError, FileError, foreign, in_a_line
from core.store.texts import numbered_lines, parse_json, read_text

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the shipped texts; ``embedded:NAME`` is its ``NAME.jsonl``."""

_FILE_SUFFIXES = (".jsonl", ".parquet", ".txt", ".npy")


@dataclass(frozen=True)
class Row:
    """One row of text: ``prompt`` is read only, ``answer`` is predicted and counts.

    Attributes:
        prompt: Context of the answer; ``None`` for a document.
        answer: The answer, or the whole document; empty for a row of token ids.
        alternative: Another answer, where the source names a field for it.
        token_ids: A document that is already tokenised.
        place: Source and number of the row, for messages; two rows that differ in it only are equal.
    """

    prompt: str | None
    answer: str
    alternative: str | None = None
    token_ids: tuple[int, ...] | None = None
    place: str = field(default="", compare=False)


def source_problem(config: SourceConfig) -> str | None:
    """What is wrong with a source as far as can be told without reading it, or ``None``."""
    kind, _, name = config.source.partition(":")
    if kind in NAMED:
        return name_problem(config.source) or _named_problem(config) or _mirror_problem(config)
    if kind == "hub":
        valid = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        if not valid:
            return f"source: hub:ORG/NAME expected, got {config.source!r}"
        return _mirror_problem(config)
    if config.mirror is not None:
        return (
            f"mirror: only a hub data set has one, got mirror={config.mirror!r} with "
            f"source={config.source!r}; remove it"
        )
    if kind == "embedded":
        known = sorted(p.stem for p in EMBEDDED.glob("*.jsonl"))
        if name in known:
            return None
        listed = ", ".join(f"embedded:{k}" for k in known)
        return f"source: no embedded text {config.source!r}; known: {listed}"
    return _file_problem(config)


def _named_problem(config: SourceConfig) -> str | None:
    """A benchmark's name says subset and split; the shipped authors have no repository either."""
    ignored = {"subset", "split"} & config.model_fields_set
    if config.source.startswith("authors:"):
        ignored |= {"mirror", "revision"} & config.model_fields_set
    if not ignored:
        return None
    field_name = min(ignored)
    return (
        f"{field_name}: has no effect on {config.source!r}, got {getattr(config, field_name)!r}; remove it, "
        "or name the data set as hub:ORG/NAME"
    )


def _mirror_problem(config: SourceConfig) -> str | None:
    if config.mirror is None or Path(config.mirror).is_dir():
        return None
    return (
        f"mirror: folder {config.mirror!r} does not exist; copy the data set's repository there, "
        "README.md included"
    )


def _file_problem(config: SourceConfig) -> str | None:
    path = Path(config.source)
    if path.suffix not in _FILE_SUFFIXES:
        kind, colon, _ = config.source.partition(":")
        near = get_close_matches(kind, NAMED, n=1, cutoff=0.6) if colon else []
        hint = f" (did you mean {near[0]}:?)" if near else ""
        return (
            f"source: {config.source!r} is none of hub:ORG/NAME, embedded:NAME, or a file ending in "
            f"{', '.join(_FILE_SUFFIXES)}; nor a data set by name, {', '.join(f'{n}:' for n in sorted(NAMED))}"
            f"{hint}"
        )
    if path.suffix == ".npy" and "fields" in config.model_fields_set:
        return f"fields: {config.source!r} holds token ids and has no fields; remove it"
    return None if path.is_file() else f"source: file {config.source!r} does not exist"


def read_records(config: SourceConfig, *, role: str) -> list[Mapping[str, Any]]:
    """The first ``config.n`` records of a source with all their fields, in its order.

    A record of a ``.txt`` file has the field ``text``, one of a ``.npy`` file the field ``token_ids``.

    Args:
        config: The source.
        role: Its place in the configuration, ``data.ROLE``, for messages.

    Raises:
        DataError: If the source is unknown, missing, unreadable or empty.
    """
    problem = source_problem(config)
    if problem:
        raise DataError(f"data.{role}.{problem}")
    try:
        records = list(islice(_records(config, role), config.n))
    except FileError as err:
        raise DataError(f"data.{role}: {err}") from err
    if not records:
        raise DataError(f"data.{role}: {config.source} holds no row")
    return records


def read_rows(config: SourceConfig, *, role: str) -> list[Row]:
    """The first ``config.n`` rows of a source, in its order.

    Raises:
        DataError: If the source is missing or empty, or a row lacks a field or is blank.
    """
    rows = []
    for i, record in enumerate(read_records(config, role=role), start=1):
        place = f"{config.source} row {i}"
        if _holds_tokens(config):
            rows.append(Row(None, "", token_ids=record["token_ids"], place=place))
        else:
            rows.append(_to_row(record, config, place=place, where=f"data.{role}: {place}"))
    return rows


def _holds_tokens(config: SourceConfig) -> bool:
    return Path(config.source).suffix == ".npy" and not config.source.startswith("hub:")


def _records(config: SourceConfig, role: str) -> Iterator[Mapping[str, Any]]:
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
    reader = {".txt": _paragraphs, ".parquet": _parquet_records, ".npy": _token_records}
    return reader.get(path.suffix, _json_lines)(path, role)


def _json_lines(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    for number, line in numbered_lines(path):
        record = parse_json(line, where=str(path), line=number)
        if not isinstance(record, dict):
            raise DataError(
                f"data.{role}: {path}:{number}: each line must be an object, "
                f"got {type(record).__name__}"
            )
        yield record


def _paragraphs(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    for paragraph in re.split(r"\n\s*\n", read_text(path)):
        if paragraph.strip():
            yield {"text": " ".join(paragraph.split())}


def _parquet_records(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    def refused(err: Exception) -> DataError:
        return DataError(
            f"data.{role}: {path} is not a Parquet file that can be read: {in_a_line(err)}; write it anew, or "
            "give JSON Lines"
        )

    with foreign(refused):
        for batch in pyarrow.parquet.read_table(path).to_batches():
            yield from batch.to_pylist()


def _token_records(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    for ids in read_token_array(path, where=f"data.{role}"):
        yield {"token_ids": ids}


def _hub_records(
    config: SourceConfig, repository: str, subset: str | None, split: str, role: str
) -> Iterator[Mapping[str, Any]]:
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


def _written_out(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A multiple-choice question as its prompt, the right choice with its letter as its answer."""
    match record:
        case {"question": str(question), "choices": [*choices], "answer": int(answer)} if all(
            isinstance(choice, str) for choice in choices
        ) and 0 <= answer < len(choices) <= len(ascii_uppercase):
            letters = ascii_uppercase[: len(choices)]
            lines = [f"{a}. {choice}" for a, choice in zip(letters, choices, strict=True)]
            prompt = "\n".join([question.strip(), *lines, "Answer:"])
            return {"question": prompt, "answer": lines[answer]}
    raise DataError(
        f"{where}: a question, a list of choices and the number of the right one from 0 expected, got "
        f"{ {name: record.get(name) for name in ('question', 'choices', 'answer')} }"
    )


def _to_row(record: Mapping[str, Any], config: SourceConfig, *, place: str, where: str) -> Row:
    fields = config.fields
    if config.source.partition(":")[0] in NAMED and "fields" not in config.model_fields_set:
        fields = named_fields(config.source)
        known = BENCHMARKS.get(config.source)
        if known is not None and known.shape == "choices":
            record = _written_out(record, where)
    alternative = (
        None if fields.alternative is None else _text(record, fields.alternative, where=where)
    )
    if fields.text is not None:
        return Row(None, _text(record, fields.text, where=where), alternative, place=place)
    assert fields.prompt is not None and fields.answer is not None  # FieldNames checks it
    prompt = _text(record, fields.prompt, where=where)
    answer = _text(record, fields.answer, where=where)
    return Row(prompt, answer, alternative, place=place)


def _text(record: Mapping[str, Any], name: str, *, where: str) -> str:
    if name not in record:
        near = get_close_matches(name, record, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"{where}: no field {name!r}; fields are {', '.join(map(repr, record))}; "
            f"{hint}set data.*.fields"
        )
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {name!r} must be text that is not blank, got {value!r}")
    return value
