"""Any mutation of a good file works, or is refused with one message that names the file: no traceback, no hang.

``make mutations`` does the same on ten thousand files; here are a few of each form, and what it has found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutation.campaign import chosen, fault_of_file, try_file, workplace
from mutation.good_files import GoodFile, good_files
from mutation.mutants import made, mutant, smallest, written
from mutation.texts import BYTE_MUTATIONS
from mutation.trees import ODD_NUMBERS, ODD_TEXTS, ODD_VALUES, TREE_MUTATIONS, places

from core.store.place import CACHE_VARIABLE

_FIRST, _COUNT = 0, 120
_FORMS = ("sweep", "trial", "preparation", "evaluation data", "cluster", "guideline", "published")


@cache
def _good() -> list[GoodFile]:
    return good_files()


def _of(form: str) -> GoodFile:
    return next(good for good in _good() if good.form == form)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with workplace() as made_folder:
        yield made_folder


@pytest.mark.parametrize("form", _FORMS)
def test_what_is_mutated_is_accepted_whole(form: str, folder: Path) -> None:
    good = _of(form)
    assert try_file(good, good.content, folder).verdict == "accepted"


@pytest.mark.parametrize("tenth", range(10))
def test_a_mutated_file_works_or_is_refused_with_one_message(tenth: int, folder: Path) -> None:
    size = _COUNT // 10
    for seed in range(_FIRST + tenth * size, _FIRST + (tenth + 1) * size):
        good, bad = chosen(_good(), seed)
        ending = try_file(good, bad.content, folder)
        assert not ending.is_fault, fault_of_file(good, bad, ending, seed, folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.data())
def test_any_value_in_any_place_works_or_is_refused(folder: Path, data: st.DataObject) -> None:
    good = _of(data.draw(st.sampled_from(_FORMS)))
    tree = yaml.safe_load(good.content)
    owner, key = data.draw(st.sampled_from(list(places(tree))))
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    owner[key] = data.draw(
        st.recursive(
            plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
        )
    )
    ending = try_file(good, written(tree), folder)
    assert not ending.is_fault, ending.said


@settings(max_examples=40, deadline=None, derandomize=True)
@given(form=st.sampled_from(_FORMS), content=st.binary(max_size=80), at=st.integers(0, 2_000))
def test_any_bytes_in_any_place_work_or_are_refused(
    folder: Path, form: str, content: bytes, at: int
) -> None:
    good = _of(form)
    ending = try_file(good, good.content[:at] + content + good.content[at:], folder)
    assert not ending.is_fault, ending.said


# The generator


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_says_everything(seed: int) -> None:
    good, bad = chosen(_good(), seed)
    assert mutant(good.content, seed) == bad == made(good.content, bad.steps)


def test_every_mutation_changes_files() -> None:
    content = _of("sweep").content
    seen = {bad.kind for seed in range(600) if (bad := mutant(content, seed)).content != content}
    assert seen == {*TREE_MUTATIONS, *BYTE_MUTATIONS}
    assert len({repr(odd) for odd in (*ODD_NUMBERS, *ODD_TEXTS, *ODD_VALUES)}) > 80


def test_a_failing_mutant_is_made_smaller() -> None:
    content = b"".join(b"key%d: %d\n" % (i, i) for i in range(50))
    bad = mutant(content, 3)
    small = smallest(content, bad, lambda other: b"key7" in other)
    assert b"key7" in small.content and small.content.count(b"\n") <= 1


# What was found


@pytest.mark.parametrize(
    ("form", "old", "new", "said"),
    [
        pytest.param(
            "sweep", b"name: ", b"seed: !!bool maybe\nname: ", "a value cannot be read: KeyError: 'maybe'", id="bool"
        ),
        pytest.param(
            "sweep", b"name: ", b"seed: !!timestamp x\nname: ", "a value cannot be read: AttributeError", id="time"
        ),
        pytest.param(
            "sweep", b'"package:smollm2"', b"a" * 300, "model.source: is longer than a path can be", id="name"
        ),
        pytest.param(
            "preparation", b'"authors:forget"', b"a/" * 3_000, "data.forget.source: is longer than a path", id="path"
        ),
        pytest.param(
            "sweep", b"start_from:", b"start_from:\n  - {run: ~nobody/x}\n  - {run: " + b"a" * 300 + b"}\nx:",
            "start_from.0: run: '~nobody/x' holds no ledger.db", id="runs",
        ),
        pytest.param(
            "cluster", b"head_node_type: head", b"head_node_type: {head: 1}", "head_node_type: must follow", id="head"
        ),
        pytest.param(
            "cluster", b"type: aws", b"type: local", "must satisfy Ray's validation, got Click", id="click"
        ),
        pytest.param(
            "guideline", b"{adapter: {rank: 16}}", b"{budget: much}",
            "budget: a section is expected, got 'much'", id="budget",
        ),
        pytest.param(
            "guideline", b"{adapter: {rank: 16}}", b"{adapter: 0.5}",
            "adapter: a section is expected, got 0.5", id="adapter",
        ),
    ],
)  # fmt: skip
def test_what_was_found_is_refused(
    form: str, old: bytes, new: bytes, said: str, folder: Path
) -> None:
    good = _of(form)
    assert old in good.content
    ending = try_file(good, good.content.replace(old, new, 1), folder)
    assert ending.verdict == "refused", ending.said


def test_the_workplace_leaves_the_process_as_it_was() -> None:
    before = os.environ.get(CACHE_VARIABLE), Path.cwd()
    with workplace() as made_folder:
        assert (os.environ[CACHE_VARIABLE], Path.cwd()) != before
    assert (os.environ.get(CACHE_VARIABLE), Path.cwd()) == before
    assert not made_folder.exists()
