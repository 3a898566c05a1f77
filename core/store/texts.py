"""Text, JSON and JSON Lines that others wrote: read, or refused with file, line, rule and what to do.

Text is UTF-8, with a byte order mark or without. Nothing is guessed: a file in another encoding that was read as
if it were UTF-8 would be trained on.
"""

import codecs
import gzip
import json
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from core.errors import FileError, first_line

_GZIP = b"\x1f\x8b"
_OTHER_FILES: tuple[tuple[bytes, str, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32", ""),
    (codecs.BOM_UTF32_BE, "UTF-32", ""),
    (codecs.BOM_UTF16_LE, "UTF-16", ""),
    (codecs.BOM_UTF16_BE, "UTF-16", ""),
    (_GZIP, "", "it is a gzip archive; unpack it (gunzip)"),
    (b"PK\x03\x04", "", "it is a zip archive; unpack it (unzip)"),
    (b"\x28\xb5\x2f\xfd", "", "it is a zstd archive; unpack it (unzstd)"),
    (b"PAR1", "", "it is a Parquet file; give it the suffix .parquet"),
)
"""How files begin that are no UTF-8: the encoding, or what to do."""
MOST_JSON_BYTES = 1 << 28
"""Of one JSON value: several times the largest tokenizer. Read, it takes some ten times as much memory."""
MOST_UNPACKED_BYTES = 1 << 30
"""Bytes that a gzip archive may hold whatever its own size, and a line of a file."""
MOST_TIMES = 100
"""How often its own size a larger one may hold: text is rarely packed to a fiftieth, a bomb to a thousandth."""
_CONVERT = "convert it with `iconv -f {} -t UTF-8`"
_LFS_POINTER = "version https://git-lfs.github.com/spec/"
_LFS_ADVICE = "is a pointer of Git LFS, not the file; run `git lfs pull` where it came from"


def read_text(path: Path) -> str:
    """A whole file.

    Raises:
        FileError: If it cannot be read, or is not UTF-8.
    """
    try:
        _refuse_endless(path)
        content = path.read_bytes()
    except OSError as err:
        raise _unread(path, err) from err
    return decoded(content, where=str(path))


def decoded(content: bytes, *, where: str) -> str:
    """Bytes as text.

    Args:
        content: Bytes in UTF-8.
        where: The file, for the message.

    Raises:
        FileError: If they are not UTF-8, or hold a NUL, as UTF-16 without a byte order mark does.
    """
    return _decoded(content.removeprefix(codecs.BOM_UTF8), where, first=content[:8])


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line with its end, one in memory at a time; of a gzip archive what is in it.

    Raises:
        FileError: If the file cannot be read, a line is not UTF-8 or has no end, or an archive holds far more than it
            could of text.
    """
    try:
        _refuse_endless(path)
        with path.open("rb") as file:
            is_packed = file.read(len(_GZIP)) == _GZIP
        with cast(BinaryIO, gzip.open(path) if is_packed else path.open("rb")) as opened:
            first = b""
            lines = _bounded(opened, path, most=_most_bytes(path) if is_packed else None)
            for number, line in enumerate(lines, start=1):
                first = first or line[:8]
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                text = _decoded(content, str(path), first=first, line=number)
                if number == 1 and text.startswith(_LFS_POINTER):
                    raise FileError(str(path), _LFS_ADVICE, number)
                yield number, text
    except (OSError, EOFError, zlib.error) as err:
        raise _unread(path, err) from err


def _most_bytes(path: Path) -> int:
    """What a gzip archive may hold."""
    return max(MOST_UNPACKED_BYTES, MOST_TIMES * path.stat().st_size)


def _bounded(file: BinaryIO, path: Path, *, most: int | None) -> Iterator[bytes]:
    """Lines of a file; of an archive, ``most`` bytes in all."""
    n_bytes = 0
    while line := file.readline(MOST_UNPACKED_BYTES + 1):
        n_bytes += len(line)
        if most is not None and n_bytes > most:
            rule = f"unpacks to more than {most} bytes, {MOST_TIMES} times its own size"
            raise FileError(str(path), f"{rule}; unpack it yourself (gunzip) if it is no bomb")
        if len(line) > MOST_UNPACKED_BYTES:
            raise FileError(
                str(path), f"has a line of more than {MOST_UNPACKED_BYTES} bytes; split it"
            )
        yield line


def read_json(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        FileError: If the file cannot be read, is too large, is not UTF-8 or not JSON.
    """
    with suppress(OSError):  # said when it is read
        if path.stat().st_size > MOST_JSON_BYTES:
            problem = (
                f"holds one JSON value of {path.stat().st_size} bytes, more than {MOST_JSON_BYTES}; "
                "restore it from a copy"
            )
            raise FileError(str(path), problem)
    return parse_json(read_text(path), where=str(path))


def parse_json(text: str, *, where: str, line: int = 0) -> Any:
    r"""The value of a JSON text.

    Args:
        text: JSON; ``NaN`` and infinities are numbers.
        where: The file, for the message.
        line: Line of the file in which the text begins; 0 if it is the whole file.

    Raises:
        FileError: If it is not JSON, nested too deeply, or holds half of a character (a lone surrogate such as
            ``\ud83d``), which no tokenizer reads.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as err:
        if text.startswith(_LFS_POINTER):
            raise FileError(where, _LFS_ADVICE) from err
        problem = f"not JSON: {err.msg} (column {err.colno})"
        raise FileError(where, problem, max(line, 1) + err.lineno - 1) from err
    except UnicodeEncodeError as err:
        half = f"\\u{ord(err.object[err.start]):x}"
        problem = f"holds half of a character, {half}, without its other half; remove it, or write the text anew"
        raise FileError(where, problem, line) from err
    except RecursionError as err:
        raise FileError(where, "not JSON that can be read: nested too deeply", line) from err
    except ValueError as err:  # a number of thousands of digits
        raise FileError(where, f"not JSON that can be read: {first_line(err)}", line) from err
    return value


def _decoded(content: bytes, where: str, *, first: bytes, line: int = 0) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as err:
        place = line or 1 + content.count(b"\n", 0, err.start)
        problem = f"is not UTF-8{_what_else(first, content[err.start])}"
        raise FileError(where, problem, place) from err
    if "\0" in text:
        place = line or 1 + text.count("\n", 0, text.index("\0"))
        problem = (
            "is not text in UTF-8: it holds a NUL; if it is UTF-16, convert it with "
            "`iconv -f UTF-16LE -t UTF-8`"
        )
        raise FileError(where, problem, place)
    return text


def _what_else(first: bytes, byte: int) -> str:
    for begin, encoding, advice in _OTHER_FILES:
        if first.startswith(begin):
            return f": {advice}" if advice else f" but {encoding}; {_CONVERT.format(encoding)}"
    return f", got the byte 0x{byte:02x}; from Latin-1 or Windows {_CONVERT.format('CP1252')}"


def _refuse_endless(path: Path) -> None:
    """Refuse a pipe or a device: reading it may wait for ever, or never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        problem = "cannot be read: it is a pipe or a device; give a whole file"
        raise FileError(str(path), problem)


def _unread(path: Path, err: Exception) -> FileError:
    said = err.strerror if isinstance(err, OSError) and err.strerror else first_line(err)
    problem = f"cannot be read: {said}; give a whole file that this user may read"
    return FileError(str(path), problem)
