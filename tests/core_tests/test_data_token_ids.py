"""Rows of token ids are read from arrays as they stand, and nothing else of an array is."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_roles import DataMaker, rows_of

from core.data.rows import Row
from core.data.splits import split_data
from core.data.tokens import TokenRow
from core.errors import DataError


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
    config = make_data({"forget": {"source": str(path), "max_tokens": 3, "overlong": "cut"}})
    found = split_data(config, tokenizer, vocabulary=301)
    assert found["forget"] == (TokenRow((5, 0, 7), 0), TokenRow((300, 1, 2), 0))
    assert found.forget_rows == tuple(rows_of(path))
    message = (
        r"data\.forget: .*ids\.npy row 2: token id 300 is outside the vocabulary of {}; "
        "this file belongs to another tokenizer"
    )
    with pytest.raises(DataError, match=message.format(300)):
        split_data(config, tokenizer, vocabulary=300)
    with pytest.raises(DataError, match=message.format(len(tokenizer))):
        split_data(config, tokenizer)


def test_a_tokenizer_of_another_model_is_refused(make_data: DataMaker, tokenizer: Any) -> None:
    config = make_data()
    with pytest.raises(DataError, match="of 10; tokenizer and model do not belong together"):
        split_data(config, tokenizer, vocabulary=10)


def test_equal_rows_of_token_ids_are_kept_once_and_refused_in_two_roles(
    make_data: DataMaker, tokenizer: Any, tmp_path: Path
) -> None:
    path = str(numbers(tmp_path / "ids.npy", np.array([[1, 2], [3, 4], [1, 2]])))
    assert len(split_data(make_data({"forget": {"source": path}}), tokenizer)["forget"]) == 2
    with pytest.raises(
        DataError,
        match=r"data\.retain: .*ids\.npy row 1 shares a row with data\.forget: .*ids\.npy row 1; 2 token",
    ):
        split_data(make_data({"forget": {"source": path}, "retain": {"source": path}}), tokenizer)
