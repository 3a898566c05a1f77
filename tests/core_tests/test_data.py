"""Rows are read from every kind of source, split without overlap, and masked by their lengths."""

import json
import os
import pickle
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core.config import DataConfig, SourceConfig
from core.data.sources import EMBEDDED, Row, read_records, read_rows
from core.data.splits import Splits, refuse_small_retain, split_data
from core.data.tokens import TokenRow, collate, reading_order, token_rows, tokenise, tokenise_splits
from core.errors import DataError
from core.losses import IGNORED, counted_tokens

CPU = torch.device("cpu")
ROLES = ("forget", "retain", "approximate", "general")
PAIR = {"prompt": "q", "answer": "a"}

DataMaker = Callable[..., DataConfig]


def rows_of(source: str | Path, **options: Any) -> list[Row]:
    return read_rows(SourceConfig(source=str(source), **options), role="forget")


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte; the end of text, id 0, also serves as padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {c: i for i, c in enumerate(alphabet, start=1)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


@pytest.fixture
def make_data(tmp_path: Path) -> DataMaker:
    """Files of the four roles with distinct rows; ``make_data(retain=[...])`` replaces one role's."""

    def make(changes: Mapping[str, Any] | None = None, **texts: list[str]) -> DataConfig:
        contents = {role: [f"{role} row {i}" for i in range(12)] for role in ROLES} | texts
        values: dict[str, Any] = {
            role: {"source": str(write(tmp_path / f"{role}.jsonl", rows))}
            for role, rows in contents.items()
        }
        return DataConfig(**(values | {"probe_rows": 4, "report_rows": 5} | dict(changes or {})))

    return make


# Sources


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
    path = write(tmp_path / "rows.jsonl", ["one", "two", "three"])
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
    [("rows.parquet", "is not a Parquet file"), ("rows.txt", "is not UTF-8: .* at byte 0")],
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


# Token ids


def numbers(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["uint16", "int32", ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_token_ids_are_read_as_they_stand(tmp_path: Path, dtype: str, order: Any) -> None:
    ids = np.arange(12).reshape(3, 4).astype(dtype, order=order)
    rows = rows_of(numbers(tmp_path / "ids.npy", ids), n=2)
    assert rows == [
        Row(None, "", token_ids=(0, 1, 2, 3)),
        Row(None, "", token_ids=(4, 5, 6, 7)),
    ]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        pytest.param(
            np.zeros((2, 3), "float32"),
            r"integer array .* got float32 of shape \(2, 3\)",
            id="floats",
        ),
        pytest.param(np.zeros(3, "int64"), r"got int64 of shape \(3,\)", id="one-dimension"),
        pytest.param(np.zeros((2, 2), bool), "got bool of shape", id="booleans"),
        pytest.param(np.array([[{}, {}]]), r"got object of shape \(1, 2\)", id="objects"),
        pytest.param(
            np.array([[1, 2], [3, -1]]), r"row 2: token ids start at 0, got -1", id="negative"
        ),
        pytest.param(np.zeros((0, 5), "int64"), r"ids\.npy holds no row", id="empty"),
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(numbers(tmp_path / "ids.npy", array))


def test_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    marker = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (os.mkdir, (str(marker),))

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"ids\.npy is not a \.npy file of numbers: "):
        rows_of(path)
    np.save(path, np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="integer array .* got object"):
        rows_of(path)
    assert not marker.exists()


@pytest.mark.parametrize("change", [-1, 8])
def test_an_array_of_another_length_than_promised_is_refused(tmp_path: Path, change: int) -> None:
    path = numbers(tmp_path / "ids.npy", np.zeros((4, 4), "int64"))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(
        DataError,
        match=rf"promises {len(content)} bytes, the file has {len(content) + change}; copy it",
    ):
        rows_of(path)


def test_token_ids_have_no_fields(tmp_path: Path) -> None:
    path = numbers(tmp_path / "ids.npy", np.ones((2, 2), "int64"))
    with pytest.raises(DataError, match=r"data\.forget\.fields: .*ids\.npy' holds token ids"):
        rows_of(path, fields={"text": "text"})


def test_token_ids_reach_the_model_as_they_stand_and_must_be_known(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    path = numbers(tmp_path / "ids.npy", np.array([[5, 0, 7, 0], [300, 1, 2, 3]]))
    config = make_data({"forget": {"source": str(path), "max_tokens": 3}})
    splits = split_data(config)
    found = tokenise_splits(splits, config, tokenizer, vocabulary=301)
    assert found["forget"] == (TokenRow((5, 0, 7), 0), TokenRow((300, 1, 2), 0))
    assert found.forget_rows == splits.forget
    message = (
        r"data\.forget: .*ids\.npy row 2: token id 300 is outside the vocabulary of {}; "
        "this file belongs to another tokenizer"
    )
    with pytest.raises(DataError, match=message.format(300)):
        tokenise_splits(splits, config, tokenizer, vocabulary=300)
    with pytest.raises(DataError, match=message.format(len(tokenizer))):
        tokenise_splits(splits, config, tokenizer)


def test_a_tokenizer_of_another_model_is_refused(make_data: DataMaker, tokenizer: Any) -> None:
    config = make_data()
    with pytest.raises(DataError, match="of 10; tokenizer and model do not belong together"):
        tokenise_splits(split_data(config), config, tokenizer, vocabulary=10)


def test_equal_rows_of_token_ids_are_kept_once_and_refused_in_two_roles(
    make_data: DataMaker, tmp_path: Path
) -> None:
    path = str(numbers(tmp_path / "ids.npy", np.array([[1, 2], [3, 4], [1, 2]])))
    assert len(split_data(make_data({"forget": {"source": path}})).forget) == 2
    with pytest.raises(
        DataError, match=r"data\.retain: .* shares a row with data\.forget: '.*ids\.npy row 1'"
    ):
        split_data(make_data({"forget": {"source": path}, "retain": {"source": path}}))


# Splits


def test_the_parts_are_disjoint_and_complete(make_data: DataMaker) -> None:
    splits = split_data(make_data())
    parts = {name: {row.answer for row in rows} for name, rows in vars(splits).items()}
    assert {name: len(rows) for name, rows in parts.items()} == {
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
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(make_data: DataMaker) -> None:
    assert split_data(make_data()) == split_data(make_data())
    other = split_data(make_data({"split_seed": 1}))
    assert other.retain_probe != split_data(make_data()).retain_probe
    assert other.forget == split_data(make_data()).forget


def test_a_role_s_split_does_not_depend_on_the_other_roles_files(make_data: DataMaker) -> None:
    before = split_data(make_data())
    after = split_data(
        make_data(forget=["something else"], general=[f"general {i}" for i in range(20)])
    )
    for part in ("retain_train", "retain_probe", "retain_report", "approximate_probe"):
        assert getattr(after, part) == getattr(before, part)


def test_a_row_that_two_roles_share_is_refused(make_data: DataMaker) -> None:
    retain = [f"retain row {i}" for i in range(12)]
    with pytest.raises(
        DataError, match=r"data\.retain: .* shares a row with data\.forget: 'Forget, ROW 3!'"
    ):
        split_data(make_data(retain=[*retain, "Forget, ROW 3!"]))


def test_rows_that_occur_twice_in_a_role_are_kept_once(make_data: DataMaker) -> None:
    splits = split_data(make_data(forget=["b", "a", "B!", "c", "a"]))
    assert [row.answer for row in splits.forget] == ["b", "a", "c"]


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
            8,
            r"data\.approximate: 4 probe rows and 5 report rows need 9 distinct rows, got 8",
        ),
        (
            "general",
            8,
            r"data\.general: 4 probe rows and 5 report rows need 9 distinct rows, got 8",
        ),
    ],
)
def test_a_role_with_too_few_rows_is_refused(
    make_data: DataMaker, role: str, n_rows: int, message: str
) -> None:
    texts = {role: [f"{role} row {i}" for i in range(n_rows)]}
    with pytest.raises(DataError, match=message):
        split_data(make_data(**texts))
    texts[role].append("one more")
    assert isinstance(split_data(make_data(**texts)), Splits)


def test_a_retain_set_smaller_than_a_step_is_refused() -> None:
    refuse_small_retain(8, 8)
    with pytest.raises(
        DataError,
        match=r"data\.retain: 7 rows to train on are fewer than the 8 of one optimiser step",
    ):
        refuse_small_retain(7, 8)
    with pytest.raises(DataError, match=r"data\.general: 0 rows to train on"):
        refuse_small_retain(0, 1, role="general")


def test_duplicates_do_not_fill_a_part(make_data: DataMaker) -> None:
    with pytest.raises(DataError, match="need 10 distinct rows, got 1"):
        split_data(make_data(retain=["the same"] * 50))


# Tokens


def tokens(row: Row, tokenizer: Any, *, max_tokens: int = 100) -> TokenRow:
    return tokenise(row, tokenizer, max_tokens=max_tokens, where="forget")


def test_every_token_of_a_document_but_the_first_counts(tokenizer: Any) -> None:
    row = tokens(Row(None, "abcd"), tokenizer)
    assert (len(row.ids), row.n_context, row.n_counted) == (4, 0, 3)


def test_a_prompt_is_read_and_its_answer_counts_up_to_the_end_of_text(tokenizer: Any) -> None:
    row = tokens(Row("who?", "me"), tokenizer)
    assert tokenizer.decode(row.ids) == "who? me<eos>"
    assert (row.n_context, row.n_counted) == (4, 4)  # " me" and the end of text
    batch = collate([row], CPU)
    counted = batch.ids[:, 1:][counted_tokens(batch.labels)]
    assert tokenizer.decode(counted.tolist()) == " me<eos>"
    assert batch.n_counted == 4


def test_a_counted_end_of_text_stays_counted_although_it_is_also_the_padding(
    tokenizer: Any,
) -> None:
    rows = [
        tokens(Row("who?", "me"), tokenizer),
        tokens(Row("where is it?", "over there"), tokenizer),
    ]
    batch = collate(rows, CPU)
    lengths = [len(row.ids) for row in rows]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    assert batch.mask.sum(dim=1).tolist() == lengths
    assert batch.labels[0, lengths[0] - 1] == tokenizer.eos_token_id
    assert (batch.labels[0, lengths[0] :] == IGNORED).all()
    assert (
        int(counted_tokens(batch.labels).sum()) == batch.n_counted == sum(r.n_counted for r in rows)
    )


def test_a_long_row_is_cut(tokenizer: Any) -> None:
    assert len(tokens(Row(None, "x" * 50), tokenizer, max_tokens=7).ids) == 7
    row = tokens(Row("who?", "a long answer"), tokenizer, max_tokens=6)
    assert (len(row.ids), row.n_counted) == (6, 2)


@pytest.mark.parametrize(
    ("row", "max_tokens"),
    [
        pytest.param(Row(None, "x"), 10, id="one-token"),
        pytest.param(Row("a long question", "yes"), 5, id="prompt-fills-the-row"),
    ],
)
def test_a_row_of_which_nothing_would_be_predicted_is_refused(
    tokenizer: Any, row: Row, max_tokens: int
) -> None:
    with pytest.raises(
        DataError, match=rf"data \(forget\): no token of .* max_tokens={max_tokens}"
    ):
        tokens(row, tokenizer, max_tokens=max_tokens)


def test_each_role_is_cut_at_its_own_length_and_named_by_its_contents(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    short = {"source": str(tmp_path / "forget.jsonl"), "max_tokens": 5}
    config, other = make_data(), make_data({"forget": short})
    found = tokenise_splits(split_data(config), config, tokenizer)
    cut = tokenise_splits(split_data(other), other, tokenizer)
    assert {len(row.ids) for row in cut["forget"]} == {5}
    assert cut["retain_probe"] == found["retain_probe"]
    changed = {part for part in found.identity if found.identity[part] != cut.identity[part]}
    assert changed == {"forget"}


@given(length=st.integers(2, 40), max_tokens=st.integers(5, 12))
@settings(deadline=None)
def test_chunks_are_the_document_without_a_short_end(length: int, max_tokens: int) -> None:
    source = {"source": "x.npy", "max_tokens": max_tokens, "overlong": "chunk"}
    config = DataConfig.model_validate(dict.fromkeys(ROLES, source))
    ids = tuple(range(length))
    rows = token_rows(Row(None, "", token_ids=ids), None, config=config, role="forget")
    dropped = length % max_tokens if length % max_tokens < 5 else 0
    assert sum((row.ids for row in rows), ()) == ids[: length - dropped]
    assert {len(row.ids) for row in rows[:-1]} <= {max_tokens}
    assert all(row.n_context == 0 and len(row.ids) >= 5 for row in rows)


def test_a_chunked_role_has_more_rows_and_a_prompt_is_cut_all_the_same(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "who?", "a": "a long answer"}) + "\n", encoding="utf-8")
    pairs = {"source": str(path), "fields": PAIR, "max_tokens": 8, "overlong": "chunk"}
    documents = {"source": str(tmp_path / "general.jsonl"), "max_tokens": 7, "overlong": "chunk"}
    texts = [f"general {i:02}" + "x" * 7 for i in range(12)]
    config = make_data({"forget": pairs}, general=texts)
    config = config.model_copy(update={"general": SourceConfig(**documents)})
    found = tokenise_splits(split_data(config), config, tokenizer)
    assert [len(row.ids) for row in found["forget"]] == [8]
    assert [len(row.ids) for row in found["general_probe"]] == [7, 7] * 4
    first, second = found["general_probe"][:2]
    assert tokenizer.decode(first.ids + second.ids) in {t[:14] for t in texts}


def test_a_part_without_any_chunk_left_is_refused(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    short = {"source": str(tmp_path / "forget.jsonl"), "overlong": "chunk", "max_tokens": 4}
    config = make_data({"forget": short})
    with pytest.raises(
        DataError, match=r"data\.forget: every chunk .* fewer than 5 tokens \(max_tokens=4\)"
    ):
        tokenise_splits(split_data(config), config, tokenizer)


some_rows = st.lists(
    st.integers(2, 12).flatmap(
        lambda n: st.builds(
            TokenRow,
            st.lists(st.integers(0, 5), min_size=n, max_size=n).map(tuple),
            st.integers(0, n - 1),
        )
    ),
    min_size=1,
    max_size=5,
)


@given(rows=some_rows)
@settings(deadline=None)
def test_masks_and_counts_come_from_lengths_whatever_the_ids(rows: list[TokenRow]) -> None:
    batch = collate(rows, CPU)
    for i, row in enumerate(rows):
        length = len(row.ids)
        assert batch.mask[i].tolist() == [1] * length + [0] * (batch.ids.shape[1] - length)
        assert batch.ids[i, :length].tolist() == list(row.ids)
        counted = counted_tokens(batch.labels[i : i + 1])
        assert int(counted.sum()) == row.n_counted
        expected = list(row.ids[max(1, row.n_context) :])
        assert batch.labels[i, 1:][counted[0]].tolist() == expected
    assert batch.n_counted == sum(row.n_counted for row in rows)


# Reading order


@given(n_rows=st.integers(1, 12), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_each_pass_reads_every_row_once_in_an_order_of_its_own(n_rows: int, seed: int) -> None:
    rows = [TokenRow((i, i), 0) for i in range(n_rows)]
    read = list(islice(reading_order(rows, seed=seed, purpose="forget"), 3 * n_rows))
    passes = [read[i : i + n_rows] for i in range(0, 3 * n_rows, n_rows)]
    for one in passes:
        assert sorted(one, key=lambda r: r.ids) == rows
    assert read == list(islice(reading_order(rows, seed=seed, purpose="forget"), 3 * n_rows))


def test_seed_purpose_and_pass_change_the_order() -> None:
    rows = [TokenRow((i, i), 0) for i in range(30)]

    def order(seed: int, purpose: str) -> list[TokenRow]:
        return list(islice(reading_order(rows, seed=seed, purpose=purpose), 60))

    first = order(0, "forget")
    assert first[:30] != first[30:]
    assert order(1, "forget")[:30] != first[:30]
    assert order(0, "retain")[:30] != first[:30]
