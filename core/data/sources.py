"""Read rows of text: embedded files, JSON Lines, Parquet, plain text, hub data sets."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.config import SourceConfig
from core.errors import DataError

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the shipped texts; ``embedded:NAME`` is its ``NAME.jsonl``."""

_FILE_SUFFIXES = (".jsonl", ".parquet", ".txt")


@dataclass(frozen=True)
class Row:
    """One row of text: ``prompt`` is read only, ``answer`` is predicted and counts."""

    prompt: str | None
    answer: str

    @property
    def normalised(self) -> str:
        """Letters and digits in lower case: what two rows are compared by."""
        return re.sub(r"\W+", " ", f"{self.prompt or ''} {self.answer}".lower()).strip()


def source_problem(config: SourceConfig) -> str | None:
    """What is wrong with a source as far as can be told without reading it, or ``None``."""
    kind, _, name = config.source.partition(":")
    if kind == "hub":
        valid = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        return None if valid else f"source: hub:ORG/NAME expected, got {config.source!r}"
    if kind == "embedded":
        known = sorted(p.stem for p in EMBEDDED.glob("*.jsonl"))
        if name in known:
            return None
        listed = ", ".join(f"embedded:{k}" for k in known)
        return f"source: no embedded text {config.source!r}; known: {listed}"
    path = Path(config.source)
    if path.suffix not in _FILE_SUFFIXES:
        return (
            f"source: {config.source!r} is none of hub:ORG/NAME, embedded:NAME, or a file ending in "
            f"{', '.join(_FILE_SUFFIXES)}"
        )
    return None if path.is_file() else f"source: file {config.source!r} does not exist"


def read_rows(config: SourceConfig, *, role: str) -> list[Row]:
    """The first ``config.n`` rows of a source, in its order.

    Raises:
        DataError: If the source is missing or empty, or a row lacks a field or is blank.
    """
    problem = source_problem(config)
    if problem:
        raise DataError(f"data.{role}.{problem}")
    records = _records(config, role)
    rows = [
        _to_row(record, config, f"data.{role}: {config.source} row {i}")
        for i, record in enumerate(islice(records, config.n), start=1)
    ]
    if not rows:
        raise DataError(f"data.{role}: {config.source} holds no row")
    return rows


def _records(config: SourceConfig, role: str) -> Iterator[Mapping[str, Any]]:
    kind, _, name = config.source.partition(":")
    if kind == "hub":
        return _hub_records(config, name, role)
    path = EMBEDDED / f"{name}.jsonl" if kind == "embedded" else Path(config.source)
    if path.suffix == ".txt":
        return _paragraphs(path, role)
    if path.suffix == ".parquet":
        return _parquet_records(path, role)
    return _json_lines(path, role)


def _json_lines(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as err:
                raise DataError(f"data.{role}: {path}:{number}: not JSON: {err.msg}") from err
            if not isinstance(record, dict):
                raise DataError(
                    f"data.{role}: {path}:{number}: each line must be an object, "
                    f"got {type(record).__name__}"
                )
            yield record


def _paragraphs(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise DataError(
            f"data.{role}: {path} is not UTF-8: {err.reason} at byte {err.start}"
        ) from err
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.strip():
            yield {"text": " ".join(paragraph.split())}


def _parquet_records(path: Path, role: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as err:
        raise DataError(f"data.{role}: {path} is not a Parquet file: {err}") from err
    for batch in table.to_batches():
        yield from batch.to_pylist()


def _hub_records(config: SourceConfig, name: str, role: str) -> Iterator[Mapping[str, Any]]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        data = datasets.load_dataset(
            name, config.subset, split=config.split, revision=config.revision
        )
    except (OSError, ValueError, HfHubHTTPError, OfflineModeIsEnabled) as err:
        first = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise DataError(
            f"data.{role}.source: cannot load {config.source!r} (subset {config.subset}, split "
            f"{config.split}): {first}; check the names and the connection, or give a file"
        ) from err
    yield from data


def _to_row(record: Mapping[str, Any], config: SourceConfig, where: str) -> Row:
    def field(name: str) -> str:
        if name not in record:
            raise DataError(
                f"{where}: no field {name!r}; fields are {', '.join(map(repr, record))}; "
                "set data.*.fields"
            )
        value = record[name]
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"{where}: field {name!r} must be text that is not blank, got {value!r}"
            )
        return value

    fields = config.fields
    if fields.text is not None:
        return Row(None, field(fields.text))
    assert fields.prompt is not None and fields.answer is not None  # FieldNames checks it
    return Row(field(fields.prompt), field(fields.answer))
