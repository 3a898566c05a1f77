"""Documents are split without overlap, by seed and role; what may not occur twice is a row of token ids."""

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_roles import ROLES, DataMaker
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import DataConfig
from core.data.counts import Counts, total
from core.data.rows import Row
from core.data.splits import count, refuse_overlap, refuse_small_retain, split_data
from core.data.tokens import TokenisedRow, TokenRow, TokenSplits
from core.errors import DataError

HEAD = "All rights of this text are reserved, and it comes as it is. "
"""61 letters, each of them a token."""


def texts(splits: TokenSplits, tokenizer: Any, part: str) -> list[str]:
    return [tokenizer.decode(row.ids) for row in splits[part]]


def test_the_parts_are_disjoint_and_complete(make_data: DataMaker, tokenizer: Any) -> None:
    splits = split_data(make_data(), tokenizer)
    assert {name: len(rows) for name, rows in splits.parts.items()} == {
        "forget": 12,
        "retain_train": 3,
        "retain_probe": 4,
        "retain_report": 5,
        "approximate_probe": 5,
        "approximate_report": 7,
        "general_train": 3,
        "general_probe": 4,
        "general_report": 5,
    }
    assert sum(map(len, splits.parts.values())) == len(set().union(*splits.parts.values()))


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(
    make_data: DataMaker, tokenizer: Any
) -> None:
    first = split_data(make_data(), tokenizer)
    assert first == split_data(make_data(), tokenizer)
    other = split_data(make_data({"split_seed": 1}), tokenizer)
    assert other["retain_probe"] != first["retain_probe"]
    assert other["forget"] == first["forget"]


def test_a_role_s_split_does_not_depend_on_the_other_roles_files(
    make_data: DataMaker, tokenizer: Any
) -> None:
    before = split_data(make_data(), tokenizer)
    after = split_data(
        make_data(forget=["something else"], general=[f"general {i}" for i in range(20)]), tokenizer
    )
    for part in ("retain_train", "retain_probe", "retain_report", "approximate_probe"):
        assert after[part] == before[part]


def test_retain_and_general_set_may_have_parts_of_unlike_size(
    make_data: DataMaker, tokenizer: Any
) -> None:
    config = make_data({"probe_rows": {"retain": 6, "general": 3}, "report_rows": 4})
    splits = split_data(config, tokenizer)
    assert (len(splits["retain_probe"]), len(splits["general_probe"])) == (6, 3)
    assert (len(splits["retain_report"]), len(splits["general_report"])) == (4, 4)
    assert (len(splits["retain_train"]), len(splits["general_train"])) == (2, 5)


@pytest.mark.parametrize(
    ("n_rows", "halves"), [(12, (5, 7)), (9, (4, 5)), (2, (1, 1)), (3, (1, 2))]
)
def test_every_row_of_the_approximate_set_is_measured_however_few_there_are(
    make_data: DataMaker, tokenizer: Any, n_rows: int, halves: tuple[int, int]
) -> None:
    rows = [f"approximate {i}" for i in range(n_rows)]
    splits = split_data(make_data(approximate=rows), tokenizer)
    assert (len(splits["approximate_probe"]), len(splits["approximate_report"])) == halves


def test_the_shipped_texts_are_split_as_ever(tokenizer: Any) -> None:
    """The hashes of the parts when rows were still compared by their words."""
    values = {role: {"source": f"embedded:{role}", "max_tokens": 100_000} for role in ROLES}
    config = DataConfig.model_validate(values | {"probe_rows": 16, "report_rows": 16})
    assert split_data(config, tokenizer).identity == {
        "forget": "699f3ed069a81757",
        "retain_train": "d7e97ccae06bed02",
        "retain_probe": "cda8357705d9f63e",
        "retain_report": "bf4ec80bde6366e8",
        "approximate_probe": "b9d414308dee8257",
        "approximate_report": "c1514506ae7cb73e",
        "general_train": "1eeb3ad8f8f4a46f",
        "general_probe": "f2821d3acb149811",
        "general_report": "3e97ccd364465a7f",
    }


# Equal rows


def test_texts_that_differ_in_a_sign_are_different_rows(
    make_data: DataMaker, tokenizer: Any
) -> None:
    signs = ["+", "-", "*", "/", "%", "//", "**", "<<", ">>", "&", "|", "^"]
    forget = [f"total = price {sign} quantity" for sign in signs]
    retain = [*(f"retain row {i}" for i in range(11)), "total = price @ quantity"]
    splits = split_data(make_data(forget=forget, retain=retain), tokenizer)
    assert texts(splits, tokenizer, "forget") == forget
    assert not splits.counts["forget"].leaves_out


def test_rows_that_occur_twice_in_a_role_are_kept_once(
    make_data: DataMaker, tokenizer: Any
) -> None:
    splits = split_data(make_data(forget=["bb", "aa", "BB!", "cc", "aa"]), tokenizer)
    assert texts(splits, tokenizer, "forget") == ["bb", "aa", "BB!", "cc"]
    assert [row.answer for row in splits.forget_rows] == ["bb", "aa", "BB!", "cc"]
    counts = splits.counts["forget"]
    assert (counts.read_rows, counts.rows) == (5, 4)
    assert (counts.repeated_rows, counts.repeated_tokens) == (1, 2)


def test_a_row_that_two_roles_share_is_refused(make_data: DataMaker, tokenizer: Any) -> None:
    retain = [f"retain row {i}" for i in range(12)]
    with pytest.raises(
        DataError,
        match=r"data\.retain: .*retain\.jsonl row 13 shares a row with data\.forget: .*forget\.jsonl row 4: "
        r"'forget row 3'; 12 token ids are equal after cutting.* remove it from one",
    ):
        split_data(make_data(retain=[*retain, "forget row 3"]), tokenizer)
    assert split_data(make_data(retain=[*retain, "Forget, ROW 3!"]), tokenizer)


@pytest.mark.parametrize(
    ("overlong", "beginning"),
    [
        pytest.param("cut", HEAD, id="common-head"),
        pytest.param("chunk", "." * 60 + HEAD[:60], id="common-chunk"),
    ],
)
def test_two_roles_that_share_a_row_only_after_cutting_are_refused(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path, overlong: str, beginning: str
) -> None:
    source = {"max_tokens": 60, "overlong": overlong}
    changes = {
        role: {"source": str(tmp_path / f"{role}.jsonl"), **source} for role in ("forget", "retain")
    }
    retain = [*(f"retain row {i}" for i in range(12)), HEAD + "a novel"]
    config = make_data(changes, forget=[beginning + "a licence"], retain=retain)
    with pytest.raises(DataError, match=r"data\.retain: .*row 13 shares a row with .*60 token ids"):
        split_data(config, tokenizer)


def test_documents_that_are_equal_after_cutting_are_one(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    retain = [HEAD + f"document {i}" for i in range(30)] + [f"retain row {i}" for i in range(11)]
    source = {"source": str(tmp_path / "retain.jsonl"), "max_tokens": 60}
    splits = split_data(make_data({"retain": source}, retain=retain), tokenizer)
    found = [row for part in ("train", "probe", "report") for row in splits[f"retain_{part}"]]
    assert len(found) == len(set(found)) == 12
    counts = total(splits.counts[f"retain_{part}"] for part in ("train", "probe", "report"))
    assert (counts.read_rows, counts.rows) == (41, 12)
    assert (counts.repeated_rows, counts.repeated_tokens) == (29, 29 * 60)
    with pytest.raises(
        DataError,
        match=r"need 10 distinct rows, got 1, because 30 rows share token ids after cutting and so count as "
        r"one \(.*retain\.jsonl row 1 is the first; .*\); give more rows",
    ):
        split_data(make_data({"retain": source}, retain=retain[:30]), tokenizer)


def test_documents_that_share_a_chunk_stay_in_one_part(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    """Two versions of an article: what one of them adds is no news to who has read the other."""
    versions = [HEAD[:60] + version * 60 for version in "ab"]
    retain = [versions[0], *(f"retain row {i}" for i in range(12)), versions[1]]
    source = {"source": str(tmp_path / "retain.jsonl"), "max_tokens": 60, "overlong": "chunk"}
    homes: Counter[str] = Counter()
    for seed in range(20):
        config = make_data({"retain": source, "split_seed": seed}, retain=retain)
        splits = split_data(config, tokenizer)
        homes_of = {
            text: part
            for part in ("retain_train", "retain_probe", "retain_report")
            for text in texts(splits, tokenizer, part)
        }
        assert len(homes_of) == 15  # three chunks of the article and the others
        assert homes_of["a" * 60] == homes_of["b" * 60] == homes_of[HEAD[:60]]
        homes[homes_of["a" * 60]] += 1
    assert set(homes) == {"retain_train", "retain_probe", "retain_report"}


some_ids = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12), min_size=13, max_size=40)


@given(rows=some_ids, seed=st.integers(0, 99), overlong=st.sampled_from(["cut", "chunk"]))
@settings(deadline=None, max_examples=60)
def test_no_row_of_token_ids_is_in_two_parts_and_every_token_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, rows: Any, seed: int, overlong: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    values: dict[str, Any] = {"probe_rows": 1, "report_rows": 1, "split_seed": seed}
    for number, role in enumerate(ROLES):
        numbers = np.array([[10 * number + 4 + i // 6, i % 6] * 6 for i in range(6)])
        np.save(folder / f"{role}.npy", numbers)
        values[role] = {"source": str(folder / f"{role}.npy")}
    text = "\n\n".join("".join("abcd"[i] for i in ids) for ids in rows)
    (folder / "retain.txt").write_text(text, encoding="utf-8")
    values["retain"] = {
        "source": str(folder / "retain.txt"),
        "max_tokens": 5,
        "overlong": overlong,
    }
    try:
        splits = split_data(DataConfig.model_validate(values), tokenizer)
    except DataError as err:
        assert "distinct rows, got" in str(err)
        return
    parts = [part for part in splits.parts if part.startswith("retain")]
    found = Counter(row.ids for part in parts for row in splits[part])
    assert set(found.values()) == {1}
    counts = total(splits.counts[part] for part in parts)
    assert counts.read_rows == len(rows)
    assert counts.read_tokens == sum(map(len, rows))
    assert counts.tokens == sum(len(ids) for ids in found)
    lost = counts.repeated_tokens + counts.cut_tokens + counts.dropped_tokens
    assert counts.read_tokens == counts.tokens + lost
    assert counts.leaves_out == (lost > 0)
    assert counts.cut_tokens == (
        sum(max(0, len(ids) - 5) for ids in rows) if overlong == "cut" else 0
    )


def test_the_same_ids_are_shared_whatever_of_them_is_context() -> None:
    question = TokenisedRow(row=Row("q", "a", place="x row 1"), pieces=(TokenRow((1, 2, 3), 2),))
    document = TokenisedRow(row=Row(None, "qa", place="y row 1"), pieces=(TokenRow((1, 2, 3), 0),))
    with pytest.raises(
        DataError, match=r"data\.retain: y row 1 shares a row with data\.forget: x row 1"
    ):
        refuse_overlap({"forget": [question], "retain": [document]})


# Counts


def test_counts_by_hand() -> None:
    row = Row(None, "a text")
    read = [
        TokenisedRow(row=row, pieces=(TokenRow((1, 2, 3), 0),), cut_tokens=7),
        TokenisedRow(row=row, pieces=(TokenRow((1, 2, 3), 0), TokenRow((4, 5), 0))),
        TokenisedRow(row=row, pieces=(TokenRow((6, 7), 0),), dropped_tokens=4),
        TokenisedRow(row=row, pieces=(), short_tokens=1),
        TokenisedRow(row=Row(None, ""), pieces=()),
    ]
    kept = [TokenRow((1, 2, 3), 0), TokenRow((4, 5), 0), TokenRow((6, 7), 0)]
    assert count(read, kept) == Counts(
        read_rows=5,
        read_tokens=22,
        rows=3,
        tokens=7,
        repeated_rows=1,
        repeated_tokens=3,
        cut_rows=1,
        cut_tokens=7,
        dropped_chunks=1,
        dropped_tokens=4,
        blank_rows=1,
        short_rows=1,
        short_tokens=1,
    )


def test_counts_add_up_field_by_field() -> None:
    names = [f.name for f in fields(Counts)]
    one = Counts(**{name: i for i, name in enumerate(names)})
    assert total([one, one]) == Counts(**{name: 2 * i for i, name in enumerate(names)})
    assert total([]) == Counts()


# Sizes


@pytest.mark.parametrize(
    ("role", "n_rows", "message"),
    [
        (
            "retain",
            9,
            r"data\.retain: 4 probe rows and 5 report rows and at least one to train on need 10",
        ),
        (
            "approximate",
            1,
            r"data\.approximate: at least 2 distinct rows are needed, got 1; give more rows",
        ),
        (
            "general",
            8,
            r"data\.general: 4 probe rows and 5 report rows need 9 distinct rows, got 8; give",
        ),
    ],
)
def test_a_role_with_too_few_rows_is_refused(
    make_data: DataMaker, tokenizer: Any, role: str, n_rows: int, message: str
) -> None:
    texts = {role: [f"{role} row {i}" for i in range(n_rows)]}
    with pytest.raises(DataError, match=message):
        split_data(make_data(**texts), tokenizer)
    texts[role].append("one more")
    assert isinstance(split_data(make_data(**texts), tokenizer), TokenSplits)


def test_a_retain_set_smaller_than_a_step_is_refused() -> None:
    refuse_small_retain(8, 8)
    with pytest.raises(
        DataError,
        match=r"data\.retain: 7 rows to train on are fewer than the 8 of one optimiser step",
    ):
        refuse_small_retain(7, 8)
    with pytest.raises(DataError, match=r"data\.general: 0 rows to train on"):
        refuse_small_retain(0, 1, role="general")


def test_duplicates_do_not_fill_a_part(make_data: DataMaker, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="need 10 distinct rows, got 1, because 50 rows share"):
        split_data(make_data(retain=["the same"] * 50), tokenizer)
