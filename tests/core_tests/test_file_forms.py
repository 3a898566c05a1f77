"""Every form that people have files in is read as the page says, or refused with line and advice."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from data_roles import rows_of
from file_forms import FORMS, Form
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.files import ENDINGS, file_records, format_of
from core.data.rows import KNOWN_SHAPES, Row
from core.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.title)
def test_a_form_is_read_or_refused_as_the_page_says(form: Form, tmp_path: Path) -> None:
    path = tmp_path / form.name
    path.write_bytes(form.content)
    if form.rows is None:
        with pytest.raises(DataError, match=form.message) as refusal:
            rows_of(path)
        assert str(path) in str(refusal.value)
    else:
        assert [row for row in rows_of(path) if not row.is_blank] == list(form.rows)


def test_the_page_lists_every_form_with_its_outcome() -> None:
    for form in FORMS:
        assert form.line in PAGE, form.line


def test_the_page_names_every_ending_and_every_shape() -> None:
    assert all(f"`{ending}`" in PAGE for ending in ENDINGS)
    for shape in KNOWN_SHAPES:
        named = shape.model_dump(exclude_none=True)
        assert "| " + ", ".join(f"`{n}: {value}`" for n, value in named.items()) + " |" in PAGE


# Text as text


@given(texts=st.lists(st.text("ab,;\t\"'\n\r é的", min_size=1).filter(str.strip), min_size=1))
@settings(deadline=None, max_examples=60)
def test_csv_gives_back_what_its_writer_was_given(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([["text", "more"], *([t, "x"] for t in texts)])
    path.write_bytes(text.getvalue().encode())
    assert [row.answer for row in rows_of(path)] == texts


@given(
    records=st.lists(
        st.dictionaries(st.text(), st.text() | st.lists(st.integers())), min_size=1, max_size=5
    ),
    indent=st.none() | st.integers(0, 2),
    is_array=st.booleans(),
    is_packed=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_json_is_read_by_its_content_whatever_the_ending(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    indent: int | None,
    is_array: bool,
    is_packed: bool,
) -> None:
    lines = "\n".join(json.dumps(record) for record in records)
    content = (json.dumps(records, indent=indent) if is_array else lines).encode()
    for name in ("rows.json", "rows.jsonl"):
        path = tmp_path_factory.getbasetemp() / (name + (".gz" if is_packed else ""))
        path.write_bytes(gzip.compress(content) if is_packed else content)
        assert list(file_records(path, where="here")) == records


def test_a_cell_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text\n{'word ' * 50_000}\n", encoding="utf-8")
    assert rows_of(path) == [Row(None, "word " * 50_000)]


def test_a_file_is_read_no_further_than_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nno JSON\n', encoding="utf-8")
    assert len(rows_of(path, n=1)) == 1
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not JSON"):
        rows_of(path)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be read: .*; give a whole file"):
        rows_of(path)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.JSONL", ".jsonl"),
        ("a.Csv.GZ", ".csv"),
        ("a.parquet.gz", None),
        ("a.npy.gz", None),
        ("a.gz", None),
        ("a.b.txt", ".txt"),
    ],
)
def test_only_text_may_be_packed_and_endings_have_no_case(name: str, form: str | None) -> None:
    assert format_of(Path(name)) == form


def test_lines_of_a_paragraph_are_joined_as_their_script_does(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(
        "\u3000\u3000他出生在\r\n北京。\r\n\r\nHe was born\nin 北京\nin 1950\n", encoding="utf-8"
    )
    assert [row.answer for row in rows_of(path)] == [
        "他出生在北京。",
        "He was born in 北京 in 1950",
    ]


# Conversations


def conversation(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def write_one(tmp_path: Path, record: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return path


def test_the_last_answer_counts_and_what_was_said_before_is_context(tmp_path: Path) -> None:
    said = conversation(
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Who?"),
        ("assistant", "Me"),
    )
    before = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    assert rows_of(write_one(tmp_path, {"messages": said})) == [Row("Who?", "Me", before=before)]
    open_end = [*said, {"role": "user", "content": "And?"}]
    assert rows_of(write_one(tmp_path, {"messages": open_end})) == [
        Row("Who?", "Me", before=before)
    ]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["hello"], r"message 1: must have a role \(system, user, assistant\) and a content"),
        (conversation(("tool", "42")), r"message 1: must have a role"),
        (conversation(("user", "Hi")), r"must take turns, .* the last answer counts; got user"),
        (
            conversation(("user", "Hi"), ("user", "Who?"), ("assistant", "Me")),
            r"must take turns, .*; got user, user, assistant",
        ),
        ("Hi", r"field 'messages' must be a list of messages, got 'Hi'"),
        (
            [{"role": "user", "content": [{"type": "image"}]}, *conversation(("assistant", "x"))],
            r"message 1: what is said must be text, got \[",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, said: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(write_one(tmp_path, {"messages": said}))


def test_a_conversation_that_is_named_as_text_is_explained(tmp_path: Path) -> None:
    path = write_one(tmp_path, {"chat": conversation(("user", "Hi"), ("assistant", "x"))})
    with pytest.raises(DataError, match=r"must be text, got \[.*fields: \{messages: chat\}"):
        rows_of(path, fields={"text": "chat"})
    assert rows_of(path, fields={"messages": "chat"}) == [Row("Hi", "x")]
