"""Text and JSON of any encoding and shape are read, or refused with file, line, rule and what to do."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import FileError
from core.store.texts import decoded, numbered_lines, parse_json, read_json, read_text

LINES = "one\nzwei \N{LATIN SMALL LETTER U WITH DIAERESIS}\n"

NO_TEXT = [
    pytest.param(LINES.encode("utf-16"), 1, "is not UTF-8 but UTF-16; convert it with `iconv -f", id="utf-16"),
    pytest.param(LINES.encode("utf-32"), 1, "is not UTF-8 but UTF-32", id="utf-32"),
    pytest.param("one\n".encode("utf-16-le"), 1, "holds a NUL; if it is UTF-16", id="utf-16-without-a-mark"),
    pytest.param(LINES.encode("latin-1"), 2, "is not UTF-8, got the byte 0xfc; from Latin-1 or", id="latin-1"),
    pytest.param(b"one\n\xe2\x82", 2, "is not UTF-8, got the byte 0xe2", id="cut-within-a-character"),
    pytest.param(b"one\ntwo\0\n", 2, "is not text in UTF-8: it holds a NUL", id="nul"),
    pytest.param(gzip.compress(b"one"), 1, "it is a gzip archive; unpack it", id="gzip"),
    pytest.param(b"PK\x03\x04\xff", 1, "it is a zip archive; unpack it", id="zip"),
    pytest.param(b"PAR1\xff", 1, "it is a Parquet file; give it the suffix .parquet", id="parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "line", "rule"), NO_TEXT)
def test_what_is_no_text_is_refused_with_its_line(
    tmp_path: Path, content: bytes, line: int, rule: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    readers: list[Callable[[Path], object]] = [read_text, read_json]
    if not content.startswith(b"\x1f\x8b"):  # lines are read from an archive, too
        readers.append(lambda p: list(numbered_lines(p)))
    for read in readers:
        with pytest.raises(FileError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}:{line}: ")
        assert rule in str(caught.value)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_every_text_in_utf8_is_read_with_a_byte_order_mark_or_without(text: str) -> None:
    text = text.removeprefix("\ufeff")
    assert decoded(text.encode("utf-8"), where="file") == text
    assert decoded(text.encode("utf-8-sig"), where="file") == text


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_lines_are_numbered_as_they_stand(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(b"\xef\xbb\xbfone\r\n\n  \nfour"))
    assert list(numbered_lines(path)) == [(1, "one\r\n"), (2, "\n"), (3, "  \n"), (4, "four")]


def test_a_torn_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(b"one\ntwo\n" * 100)[:-12])
    with pytest.raises(FileError, match="cannot be read: .*; give a whole file"):
        list(numbered_lines(path))


NO_JSON = [
    pytest.param("", "file:7: not JSON: Expecting value", id="empty"),
    pytest.param('{"a": 1,}', "file:7: not JSON: ", id="comma"),
    pytest.param("{'a': 1}", "file:7: not JSON: ", id="quotes"),
    pytest.param("<html>", "file:7: not JSON: ", id="a-web-page"),
    pytest.param("[" * 100_000, "file:7: not JSON that can be read: nested too deeply", id="deep"),
    pytest.param("9" * 5000, "file:7: not JSON that can be read: Exceeds the limit", id="digits"),
    pytest.param(r'["\ud83d"]', r"file:7: holds half of a character, \ud83d, without", id="half"),
    pytest.param(r'{"\udc00": 1}', r"file:7: holds half of a character, \udc00", id="half-a-key"),
    pytest.param(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "file: is a pointer of Git LFS, not the file; run `git lfs pull`",
        id="git-lfs",
    ),
]


@pytest.mark.parametrize(("text", "message"), NO_JSON)
def test_what_is_no_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(FileError) as caught:
        parse_json(text, where="file", line=7)
    assert str(caught.value).startswith(message)


def test_a_whole_file_is_refused_with_the_line_within_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{\n"a": 1\n"b": 2}', encoding="utf-8")
    with pytest.raises(
        FileError, match=rf"{path}:3: not JSON: Expecting ',' delimiter \(column 1\)"
    ):
        read_json(path)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_json_is_read_as_it_is(value: Any) -> None:
    try:
        text = json.dumps(value)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_json(text, where="file") == value


@pytest.mark.parametrize(
    ("name", "said"),
    [("gone", "No such file"), (".", "Is a directory"), ("x" * 300, "File name too long")],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, said: str) -> None:
    for read in (read_text, lambda p: list(numbered_lines(p))):
        with pytest.raises(
            FileError, match=f"cannot be read: {said}.*; give a whole file that this user"
        ):
            read(tmp_path / name)


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(FileError("file", "is no text; save it anew", 3)))
    assert (str(error), error.line) == ("file:3: is no text; save it anew", 3)
