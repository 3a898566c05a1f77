"""Tensors that are kept by row: each is made once, whoever asks for it, and beside whatever others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import Tensor

from core.store import artifacts

KEY = {"model": "m"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path))
    return tmp_path


class Maker:
    """Makes a tensor of each row's number, and counts."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()

    def __call__(self, rows: Sequence[str]) -> Mapping[str, Tensor]:
        self.made.update(rows)
        return {row: torch.full((int(row) % 3,), int(row)) for row in rows}


def ask(rows: Sequence[int], make: Maker, key: Mapping[str, str] = KEY) -> list[int]:
    """The rows' tensors, checked to be theirs."""
    found = artifacts.tensors_by_row("reference", key, [str(row) for row in rows], make)
    for row, tensor in zip(rows, found, strict=True):
        assert torch.equal(tensor, torch.full((row % 3,), row))
    return [row for row, _ in zip(rows, found, strict=True)]


def test_only_missing_rows_are_made() -> None:
    make = Maker()
    for rows in ([1, 2, 3], [3, 1, 2], [2, 3, 4, 5], [5, 1], [4]):
        assert ask(rows, make) == rows
    assert make.made == Counter("12345")


def test_a_row_that_is_asked_for_twice_is_made_once() -> None:
    make = Maker()
    assert ask([7, 7, 1, 7], make) == [7, 7, 1, 7]
    assert make.made == Counter("71")


def test_rows_of_other_determinants_are_others() -> None:
    make = Maker()
    ask([1], make)
    ask([1], make, {"model": "another"})
    assert make.made == Counter({"1": 2})


def test_a_failure_keeps_nothing_and_what_was_there(cache: Path) -> None:
    make = Maker()
    ask([1, 2], make)

    def fail(rows: Sequence[str]) -> Mapping[str, Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        artifacts.tensors_by_row("reference", KEY, ["2", "3"], fail)
    assert ask([2, 3], make) == [2, 3]
    assert make.made == Counter("123")
    assert (
        len(list(cache.rglob("*.safetensors"))) == 2
    )  # one file for each call that made something


def test_users_at_the_same_time_make_each_row_once() -> None:
    make, together = Maker(), Barrier(4)

    def user(number: int) -> list[int]:
        together.wait()
        return ask(list(range(number, number + 6)), make)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(user, range(4)))
    assert found == [list(range(n, n + 6)) for n in range(4)]
    assert make.made == Counter(map(str, range(9)))
