"""Rows are cut, chunked and masked by their lengths, and read in a seeded order."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_roles import PAIR, ROLES, DataMaker
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import DataConfig, SourceConfig
from core.data.batches import collate, reading_order
from core.data.rows import Row
from core.data.splits import split_data
from core.data.tokens import TokenRow, tokenise, tokenise_row
from core.errors import DataError
from core.losses import IGNORED, counted_tokens

CPU = torch.device("cpu")


def every_role(**source: Any) -> DataConfig:
    return DataConfig.model_validate({role: {"source": "x.npy", **source} for role in ROLES})


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
    short = {"source": str(tmp_path / "forget.jsonl"), "max_tokens": 12, "overlong": "cut"}
    config, other = make_data(), make_data({"forget": short})
    found, cut = split_data(config, tokenizer), split_data(other, tokenizer)
    assert {len(row.ids) for row in cut["forget"]} == {12}
    assert cut["retain_probe"] == found["retain_probe"]
    changed = {part for part in found.identity if found.identity[part] != cut.identity[part]}
    assert changed == {"forget"}


@given(length=st.integers(2, 40), max_tokens=st.integers(5, 12))
@settings(deadline=None)
def test_chunks_are_the_document_without_a_short_end(length: int, max_tokens: int) -> None:
    config = every_role(max_tokens=max_tokens, overlong="chunk")
    ids = tuple(range(length))
    found = tokenise_row(Row(None, "", token_ids=ids), None, config=config, role="forget")
    dropped = length % max_tokens if max_tokens < length and length % max_tokens < 5 else 0
    assert sum((row.ids for row in found.pieces), ()) == ids[: length - dropped]
    assert {len(row.ids) for row in found.pieces[:-1]} <= {max_tokens}
    assert all(row.n_context == 0 for row in found.pieces)
    assert all(len(row.ids) >= 5 for row in found.pieces) or length < 5  # it needs no chunks
    assert (found.cut_tokens, found.dropped_tokens) == (0, dropped)


@pytest.mark.parametrize(
    ("role", "overlong", "expected"),
    [
        pytest.param("forget", None, [64] * 156 + [16], id="forget"),
        pytest.param("forget", "cut", [64], id="forget-cut"),
        pytest.param("retain", None, [64], id="retain"),
        pytest.param("approximate", None, [64], id="approximate"),
        pytest.param("general", "chunk", [64] * 156 + [16], id="general-chunked"),
    ],
)
def test_all_of_a_long_forget_document_is_forgotten_unless_a_cut_is_asked_for(
    role: str, overlong: str | None, expected: list[int]
) -> None:
    config = every_role(max_tokens=64, overlong=overlong)
    row = Row(None, "", token_ids=tuple(range(10_000)))
    found = tokenise_row(row, None, config=config, role=role)
    assert [len(piece.ids) for piece in found.pieces] == expected
    assert (found.cut_tokens, found.dropped_tokens) == (10_000 - sum(expected), 0)


def test_a_long_answer_of_the_forget_set_is_cut_and_the_cut_is_counted(tokenizer: Any) -> None:
    config = every_role(max_tokens=8)
    found = tokenise_row(Row("who?", "a long answer"), tokenizer, config=config, role="forget")
    assert [piece.n_context for piece in found.pieces] == [4]
    assert found.cut_tokens == len("who? a long answer") + 1 - 8  # and the end of text


def test_a_chunked_role_has_more_rows_and_a_prompt_is_cut_all_the_same(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "who?", "a": "a long answer"}) + "\n", encoding="utf-8")
    pairs = {"source": str(path), "fields": PAIR, "max_tokens": 8, "overlong": "chunk"}
    documents = {"source": str(tmp_path / "general.jsonl"), "max_tokens": 7, "overlong": "chunk"}
    texts = [f"{i:02} gene{i:02}ral" + "x" * 5 for i in range(12)]
    config = make_data({"forget": pairs}, general=texts)
    config = config.model_copy(update={"general": SourceConfig(**documents)})
    found = split_data(config, tokenizer)
    assert [len(row.ids) for row in found["forget"]] == [8]
    assert [len(row.ids) for row in found["general_probe"]] == [7, 7] * 4
    first, second = found["general_probe"][:2]
    assert tokenizer.decode(first.ids + second.ids) in {t[:14] for t in texts}


def test_a_document_of_which_no_chunk_would_be_left_is_refused(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    short = {"source": str(tmp_path / "forget.jsonl"), "overlong": "chunk", "max_tokens": 4}
    config = make_data({"forget": short})
    with pytest.raises(
        DataError,
        match=r"data\.forget: every chunk of .*forget\.jsonl row 1 would have fewer than 5 tokens "
        r"\(max_tokens=4\); raise max_tokens",
    ):
        split_data(config, tokenizer)


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
