"""Files that a crash leaves old or new, and never half."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.store.durable import append_line, commit, commit_json, commit_yaml, finite, read_lines


def test_a_committed_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    commit_json(path, {"a": 1})
    commit_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    path.write_text("old", encoding="utf-8")

    def fail(temporary: Path) -> None:
        temporary.write_text("half", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        commit(path, fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_finished_is_removed_and_its_error_shown(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "weights").write_text("half", encoding="utf-8")
        raise ValueError("conversion failed")

    with pytest.raises(ValueError, match="conversion failed"):
        commit(tmp_path / "model", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_committed_whole(tmp_path: Path) -> None:
    def fill(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "a").write_text("1", encoding="utf-8")

    commit(tmp_path / "model", fill)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_numbers_that_json_cannot_hold_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    commit_json(
        path, {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5, "e": (True, None)}
    )
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": "nan",
        "b": ["inf", {"c": "-inf"}],
        "d": 1.5,
        "e": [True, None],
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_anything_made_finite_is_valid_json(value: object) -> None:
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == finite(value)


def test_yaml_keeps_the_order_below_its_header(tmp_path: Path) -> None:
    path = tmp_path / "value.yaml"
    commit_yaml(path, {"z": 1, "a": "ä"}, header="# written by a test\n")
    text = path.read_text(encoding="utf-8")
    assert text == "# written by a test\nz: 1\na: ä\n"
    assert yaml.safe_load(text) == {"z": 1, "a": "ä"}


def test_appended_lines_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    assert read_lines(path) == []
    append_line(path, {"step": 0})
    append_line(path, {"step": 1, "value": math.nan})
    assert read_lines(path) == [{"step": 0}, {"step": 1, "value": "nan"}]


@pytest.mark.parametrize("torn", ['{"st', '{"step": 2}', ""])
def test_a_last_line_without_its_end_is_ignored(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "history.jsonl"
    append_line(path, {"step": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert read_lines(path) == [{"step": 1}]


def test_appending_after_a_torn_line_loses_only_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_line(path, {"step": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "met')
    append_line(path, {"step": 2})
    append_line(path, {"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("torn", ["", "{", '{"a": "' + "x" * 20_000])
@pytest.mark.parametrize("kept", [0, 1, 300])
def test_a_torn_last_line_of_any_length_is_cut_off(tmp_path: Path, torn: str, kept: int) -> None:
    path = tmp_path / "lines.jsonl"
    line = '{"n": 1}\n'
    path.write_text(line * kept + torn, encoding="utf-8")
    append_line(path, {"n": 2}, synced=False)
    assert path.read_text(encoding="utf-8") == line * kept + '{"n": 2}\n'
