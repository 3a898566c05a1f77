"""Nodes are compared by versions, by the hash of our code, and by the files of a sweep."""

from __future__ import annotations

from pathlib import Path

from small_sweep import spec_of

from tuning.likeness import CODE, PACKAGES, hash_of, installed, local_files, looked_up, size_of


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / "core" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path.parent


def test_the_hash_follows_names_and_contents_of_our_code_alone(tmp_path: Path) -> None:
    core = write(tmp_path, "a.py", "x = 1\n")
    first = hash_of([core])
    write(tmp_path, "notes.txt", "no code")
    assert hash_of([core]) == first
    write(tmp_path, "a.py", "x = 2\n")
    changed = hash_of([core])
    write(tmp_path, "a.py", "x = 1\n")
    (core / "a.py").rename(core / "b.py")
    assert len({first, changed, hash_of([core])}) == 3


def test_a_machine_is_like_itself() -> None:
    here, lacking = looked_up({})
    assert here == installed()
    assert set(here) == {"Python", CODE, *PACKAGES}
    assert "+" not in here["torch"]
    assert lacking == []


def test_a_file_that_a_node_lacks_or_has_in_another_size_is_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    spec = spec_of({"data.forget.source": str(rows), "data.retain.source": "embedded:retain"})
    assert local_files(spec) == {str(rows): 3}
    assert looked_up({str(rows): 3})[1] == []
    assert looked_up({str(rows): 4})[1] == [str(rows)]
    assert looked_up({str(tmp_path / "absent"): 3})[1] == [str(tmp_path / "absent")]


def test_a_folder_is_as_large_as_its_files(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "12345")
    assert size_of(tmp_path) == 5
    assert size_of(tmp_path / "absent") is None
