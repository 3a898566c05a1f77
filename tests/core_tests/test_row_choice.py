"""One file serves several roles: ranges and shares of its rows; conversations and short rows on their way to tokens."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from data_roles import ROLES, DataMaker, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.config import DataConfig, SourceConfig, describe_problems, parse_trial
from core.data.inspection import inspect_sources, size_problems
from core.data.rows import Row
from core.data.sources import read_rows, source_problem
from core.data.splits import split_data
from core.data.tokens import tokenise_row
from core.errors import DataError


def answers(path: Path, **options: Any) -> list[str]:
    return [row.answer for row in rows_of(path, **options)]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", list("abcdefghij"))


# Ranges


def test_a_range_counts_from_zero_and_leaves_its_end_out(letters: Path) -> None:
    assert answers(letters, rows=[0, 3]) == ["a", "b", "c"]
    assert answers(letters, rows=[3, 10]) == list("defghij") == answers(letters, rows=[3, None])
    assert answers(letters, rows=[3, None], n=2) == ["d", "e"]
    assert rows_of(letters, rows=[3, 4])[0].place == f"{letters} row 4"


@pytest.mark.parametrize("rows", [[0, 11], [10, 12], [10, None]])
def test_more_rows_than_there_are_are_refused(letters: Path, rows: list[int | None]) -> None:
    with pytest.raises(
        DataError, match=r"data\.forget\.rows: .* than .*rows\.jsonl has, 10; lower"
    ):
        rows_of(letters, rows=rows)


def test_a_range_of_a_file_with_blank_rows_stays_where_it_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ["a", "", "b", " ", "c"])
    assert answers(path, rows=[2, 5]) == ["b", "", "c"]
    assert answers(path, n=2) == ["a", "", "b"]  # two that are not blank


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([3, 3], r"^rows: must be \[FROM, TO\], .*got \[3, 3\]"),
        ([-1, 3], r"must be \[FROM, TO\]"),
        ([0, True], r"must be \[FROM, TO\]"),
        ("0:3", r"must be \[FROM, TO\]"),
        ([0, 1, 2], r"must be \[FROM, TO\]"),
        ({"share": [0.5, 0.2]}, r"share: from < to must hold, got \[0.5, 0.2\]"),
        ({"share": 2}, r"share.1: Input should be less than or equal to 1, got 2"),
        ({"share": 0.5, "sed": 1}, r"sed: unknown key; did you mean 'seed'\?"),
        ({}, "share: required, but absent; add it"),
    ],
)
def test_a_choice_that_cannot_be_is_one_problem(value: object, message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        SourceConfig.model_validate({"source": "a.jsonl", "rows": value})
    (line,) = describe_problems(refusal.value, SourceConfig)
    assert re.search(message, line), line


def test_a_split_of_a_file_is_refused_with_the_rows_that_it_means() -> None:
    config = SourceConfig(source="embedded:forget", split="train[0:20]")
    assert source_problem(config) == (
        "split: only a hub data set has one, got split='train[0:20]' with source='embedded:forget'; remove it, and "
        "use rows: [0, 20]"
    )
    assert "use rows: [5, null]" in str(
        source_problem(config.model_copy(update={"split": "a[5:]"}))
    )
    assert source_problem(SourceConfig(source="embedded:forget", split="train")) is None
    assert "subset: only a hub" in str(source_problem(SourceConfig(source="a.csv", subset="x")))


# Shares


@given(
    texts=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=4, max_size=40),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_shares_have_every_row_once_and_equal_rows_together(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cuts: list[int], seed: int
) -> None:
    path = write_rows(tmp_path_factory.getbasetemp() / "shares.jsonl", texts)
    ends = [0.0, *sorted(cut / 10 for cut in cuts), 1.0]
    found: list[list[str]] = []
    for low, high in pairwise(ends):
        try:
            found.append(answers(path, rows={"share": [low, high], "seed": seed}))
        except DataError as err:
            assert "none are in the share" in str(err)
    assert sorted(text for part in found for text in part) == sorted(texts)
    assert sum(len(set(part)) for part in found) == len(set(texts))


def test_the_seed_draws_the_share_and_a_number_is_its_end(letters: Path) -> None:
    first = answers(letters, rows={"share": 0.5})
    assert first == answers(letters, rows={"share": [0, 0.5], "seed": 0})
    assert len(first) == 5 and first == sorted(first)  # in the order of the file
    assert first != answers(letters, rows={"share": 0.5, "seed": 1})


def test_one_file_serves_four_roles(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [f"row number {i % 90}" for i in range(100)])
    ends = [0.0, 0.1, 0.3, 0.7, 1.0]
    values: dict[str, Any] = {
        role: {"source": str(path), "rows": {"share": [low, high]}}
        for role, low, high in zip(ROLES, ends, ends[1:], strict=False)
    }
    config = DataConfig.model_validate(values | {"probe_rows": 4, "report_rows": 4})
    assert not inspect_sources({r: getattr(config, r) for r in ROLES}).problems
    splits = split_data(config, tokenizer)
    assert sum(len(rows) for rows in splits.parts.values()) == 90


def test_a_trial_s_record_of_a_named_source_is_read_back() -> None:
    values = {
        "model": {"source": "package:smollm2"},
        "data": {
            "forget": {"source": "authors:forget", "rows": [0, 4]},
            "retain": {"source": "authors:retain", "rows": {"share": 0.5}},
            "approximate": {"source": "authors:holdout"},
            "general": {"source": "embedded:general"},
        },
        "method": {"forget_loss": "ihl"},
        "optimizer": {"learning_rate": 1e-3},
        "selection": {"max_steps": 4},
    }
    trial = parse_trial(values, where="x")
    again = parse_trial(json.loads(json.dumps(trial.model_dump(mode="json"))), where="x")
    assert again == trial
    assert len(read_rows(again.data.forget, role="forget")) == 4
    old = {"text": "text", "prompt": None, "answer": None, "alternative": None}
    fields = SourceConfig.model_validate({"source": "authors:forget", "n": 1, "fields": old})
    assert read_rows(fields, role="forget")[0].prompt


# Short and blank rows


def test_blank_and_short_rows_are_left_out_and_counted(
    make_data: DataMaker, tokenizer: Any
) -> None:
    config = make_data(
        forget=["I", "a text", "", "II.", "  "], retain=["", "x", *(f"row {i}" for i in range(12))]
    )
    splits = split_data(config, tokenizer)
    assert [tokenizer.decode(row.ids) for row in splits["forget"]] == ["a text", "II."]
    counts = splits.counts["forget"]
    assert (counts.read_rows, counts.blank_rows, counts.short_rows, counts.short_tokens) == (
        5,
        2,
        1,
        1,
    )
    assert counts.read_tokens == counts.tokens + 1 and counts.leaves_out
    of_retain = splits.counts["retain"]
    assert (of_retain.read_rows, of_retain.blank_rows, of_retain.short_rows) == (2, 1, 1)
    assert splits.counts["retain_train"].read_rows == 3
    assert "general" not in splits.counts


def test_a_set_of_short_rows_only_is_refused(make_data: DataMaker, tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"data\.forget: all 3 rows are blank or too short \(1 blank"
    ):
        split_data(make_data(forget=["I", "", "V"]), tokenizer)


def test_a_prompt_that_fills_the_row_is_refused_and_not_left_out(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "forget.jsonl"
    config = make_data({"forget": {"source": str(path), "max_tokens": 8}})
    path.write_text('{"question": "a long question", "answer": "yes"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no token of 'yes' would be predicted: .* max_tokens=8"):
        split_data(config, tokenizer)


# Conversations


def test_a_plain_wording_writes_what_was_said_before_on_lines_before(tokenizer: Any) -> None:
    row = Row("who?", "me", before=(("system", "Be brief."), ("user", "hi"), ("assistant", "ho")))
    config = DataConfig.model_validate({role: {"source": "x.npy"} for role in ROLES})
    (piece,) = tokenise_row(row, tokenizer, config=config, role="forget").pieces
    assert tokenizer.decode(piece.ids) == "Be brief.\nhi\nho\nwho? me<eos>"
    assert piece.n_context == len("Be brief.\nhi\nho\nwho?")


def test_the_chat_template_writes_all_messages(tokenizer: Any) -> None:
    values = {role: {"source": "x.npy"} for role in ROLES} | {"system_prompt": "ours"}
    config = DataConfig.model_validate(values)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    try:
        for first, said in (((("system", "own"),), "own"), ((), "ours")):
            row = Row("who?", "me", before=(*first, ("user", "hi"), ("assistant", "ho")))
            (piece,) = tokenise_row(row, tokenizer, config=config, role="forget").pieces
            context = f"<system>{said}<user>hi<assistant>ho<user>who?<assistant>"
            assert tokenizer.decode(piece.ids) == context + "me"
            assert piece.n_context == len(context)
    finally:
        tokenizer.chat_template = None


# What is found without a tokenizer


def sources_of(data: DataConfig) -> dict[str, SourceConfig]:
    return {role: getattr(data, role) for role in ROLES}


def problems(data: DataConfig, **step_rows: int) -> Sequence[str]:
    found = inspect_sources(sources_of(data))
    return [*found.problems, *size_problems(data, found.rows, step_rows=step_rows)]


def test_good_data_has_no_problem_and_blank_rows_are_noted(make_data: DataMaker) -> None:
    config = make_data(forget=["a text", "", "b"])
    assert problems(config, retain=3) == []
    assert inspect_sources(sources_of(config)).notes == (
        "data.forget: 1 of 3 rows are blank and left out",
    )


def test_roles_that_share_rows_are_found_by_their_text(
    make_data: DataMaker, tmp_path: Path
) -> None:
    retain = [f"retain row {i}" for i in range(12)]
    config = make_data(retain=[*retain, "forget row 3", "forget row 5"])
    (line,) = problems(config)
    assert line == (
        f"data.retain: {tmp_path}/retain.jsonl row 13 is also in data.forget: {tmp_path}/forget.jsonl row 4, and so "
        "is 1 other row; the sets must not overlap: remove it from one"
    )
    same = config.model_copy(update={"retain": config.forget})
    (line,) = [line for line in problems(same) if "also in" in line]
    assert line.endswith("such as rows: [0, 200] and rows: [200, null]")
    assert "so are 11 other rows" in line


def test_too_few_rows_are_found(make_data: DataMaker) -> None:
    assert problems(make_data(), retain=3) == []
    (line,) = problems(make_data(), retain=4)
    assert line.startswith(
        "data.retain: 4 probe rows, 5 report rows, 4 rows of one optimiser step need 13 distinct rows, got 12; give"
    )
    (line,) = problems(make_data(general=["general row"] * 20))
    assert "data.general: 4 probe rows, 5 report rows need 9 distinct rows, got 1" in line
    (line,) = problems(make_data(approximate=["one", "one"]))
    assert line.startswith("data.approximate: at least 2 distinct rows")


def test_every_source_that_cannot_be_read_is_named(make_data: DataMaker, tmp_path: Path) -> None:
    config = make_data()
    (tmp_path / "forget.jsonl").write_text("no JSON\n", encoding="utf-8")
    (tmp_path / "general.jsonl").write_text('{"txt": "x"}\n', encoding="utf-8")
    first, second = problems(config)
    assert "forget.jsonl:1: not JSON" in first
    assert (
        "general.jsonl row 1: no field 'text'; fields are 'txt'; did you mean 'txt'? set data.*.fields"
        in second
    )


def test_what_needs_a_download_is_not_read(make_data: DataMaker) -> None:
    config = make_data({"general": {"source": "hub:ORG/NAME"}})
    found = inspect_sources(sources_of(config))
    assert found.problems == () and "general" not in found.rows
    assert found.notes == ("data.general: hub:ORG/NAME is read when it is loaded, not here",)
