"""Rows are read from every kind of source, and a bad one is named by line and field."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import write_rows
from data_roles import PAIR, rows_of

from core.config import SourceConfig
from core.data.sources import EMBEDDED, Row, read_records
from core.errors import DataError


def test_json_lines_skip_blank_lines_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n  \n{"text": "two", "more": 1}\n', encoding="utf-8")
    assert rows_of(path) == [Row(None, "one"), Row(None, "two")]


def test_parquet_rows_read_like_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"q": ["who?", "where?"], "a": ["me", "here"]}), path)
    assert rows_of(path, fields=PAIR) == [Row("who?", "me"), Row("where?", "here")]


def test_each_paragraph_of_plain_text_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("First line\nsecond line.\n\n  \n\nAnother\n", encoding="utf-8")
    assert rows_of(path) == [Row(None, "First line second line."), Row(None, "Another")]


@pytest.mark.parametrize("name", sorted(p.stem for p in EMBEDDED.glob("*.jsonl")))
def test_every_embedded_text_is_readable(name: str) -> None:
    assert rows_of(f"embedded:{name}", n=3)


def test_n_takes_the_first_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ["one", "two", "three"])
    assert [row.answer for row in rows_of(path, n=2)] == ["one", "two"]
    assert len(rows_of(path, n=99)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "one"}\n{"text": \n', r"data\.forget: .*rows\.jsonl:2: not JSON: "),
        ('{"text": "one"}\n\n[1]\n', r"rows\.jsonl:3: each line must be an object, got list"),
        (
            '{"text": "one"}\n{"txt": "two"}\n',
            r"rows\.jsonl row 2: no field 'text'; fields are 'txt'",
        ),
        ('{"text": 5}\n', r"row 1: field 'text' must be text that is not blank, got 5"),
        ('{"text": "  "}\n', r"row 1: field 'text' must be text that is not blank, got '  '"),
        ('{"text": null}\n', r"row 1: field 'text' must be text that is not blank, got None"),
        ("\n", r"data\.forget: .*rows\.jsonl holds no row"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        rows_of(path)


def test_a_missing_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "who?"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: no field 'a'; fields are 'q'"):
        rows_of(path, fields=PAIR)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", r"data\.forget\.source: file 'nowhere\.jsonl' does not exist"),
        (
            "rows.csv",
            r"'rows\.csv' is none of hub:ORG/NAME, embedded:NAME, or a file ending in \.jsonl",
        ),
        ("embedded:nothing", r"no embedded text 'embedded:nothing'; known: embedded:"),
        ("hub:a/b/c", r"hub:ORG/NAME expected, got 'hub:a/b/c'"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.parquet", "is not a Parquet file"),
        ("rows.txt", "rows.txt:1: is not UTF-8 but UTF-16"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x00 nothing of the kind")
    with pytest.raises(DataError, match=message):
        rows_of(path)


def test_the_nearest_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "who?", "answer": "me"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match="no field 'answers'; .*'answer'; did you mean 'answer'\\? set"
    ):
        rows_of(path, fields={"prompt": "question", "answer": "answers"})


def test_records_keep_every_field_and_rows_the_alternative(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "who?", "a": "me", "b": "you", "more": [1]}\n' * 2, encoding="utf-8")
    config = SourceConfig(source=str(path), n=1)
    assert read_records(config, role="forget") == [
        {"q": "who?", "a": "me", "b": "you", "more": [1]}
    ]
    rows = rows_of(path, n=1, fields={**PAIR, "alternative": "b"})
    assert rows == [Row("who?", "me", "you")]
    assert rows[0].place == f"{path} row 1"


def test_a_row_s_place_does_not_tell_two_rows_apart() -> None:
    assert Row(None, "a", place="here") == Row(None, "a", place="there")
