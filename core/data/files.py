"""Records of a file, whatever its form: JSON, CSV, Parquet, plain text, token ids; packed with gzip or not."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.data.rows import CONVERSATIONS
from core.data.token_files import read_token_array
from core.errors import DataError, FileError, first_line, foreign, in_a_line
from core.store.texts import numbered_lines, parse_json
from core.text.words import is_spaceless

Record = Mapping[str, Any]
_Reader = Callable[[Path, str], Iterator[Record]]

_LONGEST_CELL = 2**31 - 1


def format_of(path: Path) -> str | None:
    """The ending that says how a file is read, in small letters and without ``.gz``; ``None`` if none does."""
    name = path.name.lower()
    bare = name.removesuffix(".gz")
    ending = Path(bare).suffix
    is_packed = bare != name
    return ending if ending in (_TEXT_READERS if is_packed else _READERS) else None


def file_records(path: Path, *, where: str) -> Iterator[Record]:
    """Records of a file in its order, read as they are asked for.

    JSON is an array of objects, or objects one after the other, by its content. The first line of CSV has the
    names of the fields; commas, semicolons or tabs part them. A paragraph of plain text is a record with the
    field ``text``; a row of token ids one with the field ``token_ids``. Text is UTF-8, with a byte order mark
    or without.

    Args:
        path: A file with one of the endings :data:`ENDINGS`.
        where: Place in the configuration, for messages.

    Raises:
        DataError: If the file cannot be read, or is not what its ending says; with the line where there is one.
    """
    reader = _READERS[format_of(path) or ".jsonl"]
    try:
        yield from reader(path, where)
    except FileError as err:
        raise DataError(f"{where}: {err}") from err


def _json_records(path: Path, where: str) -> Iterator[Record]:
    lines = numbered_lines(path)
    is_first = True
    for number, line in lines:
        if not line.strip():
            continue
        is_array = line.lstrip().startswith("[")
        try:
            value = (
                None
                if is_first and is_array
                else parse_json(line.rstrip(), where=str(path), line=number)
            )
        except FileError as err:
            if not is_first:
                raise
            whole = "".join([line, *(later for _, later in lines)])
            yield from _of_document(whole, path, where, first=number, blame=err)
            return
        if value is None:
            whole = "".join([line, *(later for _, later in lines)])
            yield from _of_document(whole, path, where, first=number)
            return
        if not isinstance(value, dict):
            raise DataError(
                f"{where}: {path}:{number}: each line must be an object, got {type(value).__name__}"
            )
        yield value
        is_first = False


def _of_document(
    text: str, path: Path, where: str, *, first: int, blame: FileError | None = None
) -> Iterator[Record]:
    """Rows of one JSON value over many lines; ``blame`` is what is wrong if it were a row a line."""
    try:
        value = parse_json(text, where=str(path), line=first)
    except FileError as err:
        raise (blame if blame is not None and format_of(path) != ".json" else err) from err
    rows = _listed(value, f"{where}: {path}") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(
            f"{where}: {path}: an object or a list of objects is expected, got {type(rows).__name__}"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: {path} row {number}: must be an object, got {type(row).__name__}"
            )
        yield row


def _listed(value: dict[str, Any], where: str) -> Sequence[Any]:
    """The rows that an object holds under one of its keys; if it holds none, it is a row itself."""
    lists = {
        name: inner
        for name, inner in value.items()
        if name not in CONVERSATIONS and isinstance(inner, list) and _are_objects(inner)
    }
    if len(lists) > 1:
        raise DataError(
            f"{where}: holds {len(lists)} lists of rows, {', '.join(map(repr, lists))}; write each to a file of "
            "its own"
        )
    return next(iter(lists.values()), [value])


def _are_objects(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _csv_records(path: Path, where: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CELL)  # of the process; the standard is less than a long document
    lines = (line for _, line in numbered_lines(path))
    header = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if format_of(path) == ".tsv" else max(",;\t", key=header.count)
    reader = csv.reader(_chained(header, lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not names:
                names = _header(cells, f"{where}: {path}")
            elif len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            elif cells:
                raise DataError(
                    f"{where}: {path}:{reader.line_num}: {len(cells)} cells under a header of {len(names)}; put a "
                    f'cell that holds {delimiter!r} or a line end in "quotes"'
                )
    except csv.Error as err:
        raise DataError(f"{where}: {path}:{reader.line_num}: not CSV: {first_line(err)}") from err


def _chained(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


def _header(cells: Sequence[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise DataError(f"{where}: the header names {twice[0]!r} twice; rename one")
    return names


def _paragraphs(path: Path, where: str) -> Iterator[Record]:
    lines: list[str] = []
    for _, line in numbered_lines(path):
        words = " ".join(line.split())
        if words:
            lines.append(words)
        elif lines:
            yield {"text": _joined(lines)}
            lines = []
    if lines:
        yield {"text": _joined(lines)}


def _joined(lines: Sequence[str]) -> str:
    """Lines as one; no space between two in a script that writes none."""
    text = lines[0]
    for line in lines[1:]:
        text += line if is_spaceless(text[-1]) and is_spaceless(line[0]) else f" {line}"
    return text


def _parquet_records(path: Path, where: str) -> Iterator[Record]:
    import pyarrow.parquet

    def refused(err: Exception) -> DataError:
        return DataError(
            f"{where}: {path} is not a Parquet file that can be read: {in_a_line(err)}; write it anew"
        )

    with foreign(refused), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _token_records(path: Path, where: str) -> Iterator[Record]:
    for ids in read_token_array(path, where=where):
        yield {"token_ids": ids}


_TEXT_READERS: Mapping[str, _Reader] = {
    ".jsonl": _json_records,
    ".json": _json_records,
    ".ndjson": _json_records,
    ".csv": _csv_records,
    ".tsv": _csv_records,
    ".txt": _paragraphs,
}
_READERS: Mapping[str, _Reader] = {
    **_TEXT_READERS,
    ".parquet": _parquet_records,
    ".npy": _token_records,
}

ENDINGS = tuple(_READERS)
"""Endings of files that can be read, in small letters; the text among them may be followed by ``.gz``."""
