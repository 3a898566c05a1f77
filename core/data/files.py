"""Records of a file, whatever its form: JSON, CSV, Parquet, plain text, token ids; packed with gzip or not."""

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.data.rows import CONVERSATIONS
from core.data.token_files import read_token_array
from core.errors import DataError, first_line
from core.text.words import is_spaceless

Record = Mapping[str, Any]
_Reader = Callable[[Path, str], Iterator[Record]]

_GZIP = b"\x1f\x8b"
_CONVERT = "convert it with `iconv -f {} -t UTF-8`"
_CP1252 = _CONVERT.format("CP1252")
_OTHER_FILES = (
    (codecs.BOM_UTF32_LE, f" but UTF-32; {_CONVERT.format('UTF-32')}"),
    (codecs.BOM_UTF32_BE, f" but UTF-32; {_CONVERT.format('UTF-32')}"),
    (codecs.BOM_UTF16_LE, f" but UTF-16; {_CONVERT.format('UTF-16')}"),
    (codecs.BOM_UTF16_BE, f" but UTF-16; {_CONVERT.format('UTF-16')}"),
    (b"PK\x03\x04", ": it is a zip archive; unpack it (unzip)"),
    (b"\x28\xb5\x2f\xfd", ": it is a zstd archive; unpack it (unzstd)"),
)
"""How files begin that are no UTF-8, and what they are."""
_LFS_POINTER = "version https://git-lfs.github.com/spec/"
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
    except (OSError, EOFError, zlib.error) as err:
        raise DataError(
            f"{where}: {path} cannot be read: {first_line(err)}; check the file and its permissions"
        ) from err


def _lines(path: Path, where: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, decoded one by one, so that a bad one is named."""
    with path.open("rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP
    with gzip.open(path) if is_packed else path.open("rb") as opened:
        for number, raw in enumerate(opened, start=1):
            line = _decoded(raw, f"{where}: {path}:{number}")
            if number == 1 and line.startswith(_LFS_POINTER):
                raise DataError(
                    f"{where}: {path}: is a pointer of Git LFS, not the file; run `git lfs pull` where it came from"
                )
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        other = next((what for begin, what in _OTHER_FILES if raw.startswith(begin)), None)
        found = other or f", got the byte {raw[err.start]:#04x}; from Latin-1 or Windows {_CP1252}"
        raise DataError(f"{where}: is not UTF-8{found}") from err
    if "\0" in text:
        raise DataError(
            f"{where}: is not text in UTF-8: it holds a NUL; if it is UTF-16, {_CONVERT.format('UTF-16LE')}"
        )
    return text


def _json_records(path: Path, where: str) -> Iterator[Record]:
    lines = _lines(path, where)
    is_first = True
    for number, line in lines:
        if not line.strip():
            continue
        is_array = line.lstrip().startswith("[")
        try:
            value = (
                None
                if is_first and is_array
                else _parsed(line.rstrip(), f"{where}: {path}", number)
            )
        except DataError as err:
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


def _parsed(text: str, where: str, first: int) -> Any:
    """The value of a text whose first line has the number ``first``."""
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as err:
        line = first + err.lineno - 1
        raise DataError(f"{where}:{line}: not JSON: {err.msg} (column {err.colno})") from err
    except UnicodeEncodeError as err:
        half = f"\\u{ord(err.object[err.start]):x}"
        raise DataError(
            f"{where}:{first}: holds half of a character, {half}, without its other half; remove it, or write the "
            "text anew"
        ) from err
    except RecursionError as err:
        raise DataError(f"{where}:{first}: not JSON that can be read: nested too deeply") from err
    except ValueError as err:  # a number of thousands of digits
        raise DataError(f"{where}:{first}: not JSON that can be read: {first_line(err)}") from err
    return value


def _of_document(
    text: str, path: Path, where: str, *, first: int, blame: DataError | None = None
) -> Iterator[Record]:
    """Rows of one JSON value over many lines; ``blame`` is what is wrong if it were a row a line."""
    try:
        value = _parsed(text, f"{where}: {path}", first)
    except DataError as err:
        raise (blame if blame is not None and format_of(path) != ".json" else err) from err
    rows = _listed(value, f"{where}: {path}") if isinstance(value, dict) else value
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
    lines = (line for _, line in _lines(path, where))
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
    for _, line in _lines(path, where):
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
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as err:
        raise DataError(
            f"{where}: {path} is not a Parquet file that can be read: {first_line(err)}; write it anew"
        ) from err


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
