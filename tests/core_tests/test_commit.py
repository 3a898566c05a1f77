"""Files that a crash leaves old or new, and never half."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.errors import FileError
from core.store.durable import (
    append_line,
    commit,
    commit_json,
    commit_sealed_yaml,
    commit_yaml,
    finite,
    read_lines,
    refuse_broken_seal,
)


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


def test_a_sealed_file_that_lost_its_end_is_refused_though_the_rest_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    commit_sealed_yaml(path, {"name": "a", "seed": 7})
    whole = path.read_text(encoding="utf-8")
    refuse_broken_seal(whole, where="spec.yaml")
    refuse_broken_seal("name: a\n", where="a file of another's")
    assert yaml.safe_load(whole) == {"name": "a", "seed": 7}
    cut = whole.removesuffix("seed: 7\n")
    assert yaml.safe_load(cut) == {"name": "a"}
    with pytest.raises(FileError, match=r"spec.yaml:1: what follows is not what was written"):
        refuse_broken_seal(cut, where="spec.yaml")


def test_appended_lines_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    assert read_lines(path) == []
    append_line(path, {"step": 0})
    append_line(path, {"step": 1, "value": math.nan})
    assert read_lines(path) == [{"step": 0}, {"step": 1, "value": "nan"}]


LINE = {"step": 1, "metrics": {"forget_nll": 1.5}, "reason": 'a "quoted" }'}


@given(bit=st.integers(0, 7), place=st.floats(0.0, 1.0, exclude_max=True))
def test_a_flipped_bit_of_a_synced_line_is_damage_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, bit: int, place: float
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "history.jsonl"
    append_line(path, LINE)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = read_lines(path)
    except FileError as err:
        assert str(err).startswith(f"{path}:")
    else:  # the bit was of the checksum's name, or of the line's end
        assert not found or found[0].items() >= LINE.items()


def test_a_changed_value_in_a_synced_line_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2, "value": 0.25})
    path.write_text(path.read_text("utf-8").replace("0.25", "0.85"), encoding="utf-8")
    with pytest.raises(FileError, match=r":2: is not what was written \(its checksum differs\)"):
        read_lines(path)


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
