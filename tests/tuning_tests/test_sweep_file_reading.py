"""A sweep file is read as plain YAML, with paths relative to it, overrides, and a name for its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_sweep import problems, spec_of, values, write

from core.errors import ConfigError
from tuning.files import MAX_FILE_BYTES, load_sweep


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("name: a\nname: b\n", "key 'name' is given twice", id="duplicate-key"),
        pytest.param(
            "space:\n  a: {why: x}\n  a: {why: y}\n",
            "key 'a' is given twice",
            id="nested-duplicate",
        ),
        pytest.param("- a\n- b\n", "a mapping is expected, got list", id="a-list"),
        pytest.param("just words\n", "a mapping is expected, got str", id="a-string"),
        pytest.param("", "a mapping is expected, got NoneType", id="empty"),
        pytest.param("a: [1, 2\n", "not YAML: ", id="broken"),
        pytest.param("a: !!python/object/apply:os.system [ls]\n", "not YAML: ", id="python-tag"),
        pytest.param(
            "# " + "x" * MAX_FILE_BYTES, f"exceeds {MAX_FILE_BYTES} bytes", id="too-large"
        ),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert expected in caught.value.problems[0]
    assert str(caught.value).startswith(f"{path}: 1 problem\n")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(
        ConfigError,
        match=r"sweep\.yaml: 1 problem\n  - line 1: is not UTF-8 but UTF-16; convert it",
    ):
        load_sweep(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: 1 problem\n.*does not exist"):
        load_sweep(tmp_path / "nowhere.yaml")


def test_relative_paths_are_relative_to_the_sweep_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "sweeps", tmp_path / "elsewhere"
    (folder / "model").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "forget.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    path = write(folder, values({"model.source": "model", "data.forget.source": "forget.jsonl"}))
    monkeypatch.chdir(elsewhere)
    spec = load_sweep(Path("..") / "sweeps" / path.name)
    assert spec.model["source"] == str(folder / "model")
    assert spec.data["forget"]["source"] == str(folder / "forget.jsonl")
    assert spec.data["retain"]["source"] == "embedded:retain"


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        pytest.param("budget.trials", 9, ("budget", "trials"), id="section"),
        pytest.param("adapter.scaling", 4.0, ("adapter", "scaling"), id="new-section"),
        pytest.param("name", "other", ("name",), id="top"),
    ],
)
def test_an_override_replaces_a_value(
    tmp_path: Path, key: str, value: Any, place: tuple[str, ...]
) -> None:
    plain: Any = load_sweep(write(tmp_path, values()), overrides={key: value}).plain()
    for part in place:
        plain = plain[part]
    assert plain == value


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param("budjet.trials", "budjet: unknown key; did you mean 'budget'?", id="unknown"),
        pytest.param(
            "name.x", "--set name.x: 'name' holds a value, not a section", id="no-section"
        ),
        pytest.param(
            "space.adapter.rank",
            "--set space.adapter.rank: change ranges in the file, not by --set",
            id="the-space-stays-in-the-file",
        ),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, values()), overrides={key: 1})
    assert expected in "\n".join(caught.value.problems)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "9" * 64])
def test_a_run_name_is_a_plain_file_name(name: str) -> None:
    assert spec_of({"name": name}).name == name


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", ".hidden", "-flag", "a b", "a\n", "é", "x" * 65]
)
def test_any_other_run_name_is_refused(name: str) -> None:
    assert problems({"name": name})[0].startswith("name: ")
