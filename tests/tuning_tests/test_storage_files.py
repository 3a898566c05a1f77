"""Files of a storage and folders made of them: the same rules on a folder and on S3."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3_server import CREDENTIALS, s3

from tuning.storage.patience import Patience
from tuning.storage.snapshots import MANIFEST, Snapshots, fetch, read_manifest
from tuning.storage.store import AbsentError, Printed, StorageError, Store

HASTY = Patience(seconds=0.0)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with s3() as address:
            yield address


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An empty place of a storage."""
    folder = tmp_path_factory.mktemp("storage")
    root = str(folder) if request.param == "folder" else request.getfixturevalue("bucket")
    return Store(root=root, patience=HASTY).at(folder.name, "of this test")


class Killed(Exception):  # noqa: N818 - not an error
    """The process died here."""


def test_what_was_put_is_read_listed_and_deleted(store: Store) -> None:
    assert store.names() == []
    store.put("a/b", b"first")
    store.put("a/b", b"second")
    store.at("a").put("c~1", b"")
    assert store.get("a/b") == b"second"
    assert store.names() == ["a/b", "a/c~1"]
    assert store.names("a") == ["a/b", "a/c~1"]
    assert store.names("none") == []
    assert store.has("a/b") and not store.has("a") and not store.has("b")
    store.delete("a/b")
    store.delete("a/b")
    assert store.names() == ["a/c~1"]
    with pytest.raises(AbsentError, match="there is no such file"):
        store.get("a/b")


def test_a_file_is_named_by_what_was_put_and_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(range(256)) * 40_000)
    put = store.put_file("large", tmp_path / "large")
    assert put == store.fetch("large", tmp_path / "again") == Printed.of(tmp_path / "large")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()


def test_what_was_put_later_has_no_earlier_time(store: Store) -> None:
    for name in ("a", "b"):
        store.put(f"times/{name}", b"content")
    times = store.times("times")
    assert times["times/a"] <= times["times/b"]


def test_a_place_travels_between_processes(store: Store) -> None:
    store.put("a", b"content")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"content"
    error = pickle.loads(pickle.dumps(StorageError("said", is_final=True)))
    assert (str(error), error.is_final) == ("said", True)


def test_a_folder_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    folder, snapshots = attempt(tmp_path), Snapshots(store)
    assert snapshots.put(folder) == ["adapter/config.json", "adapter/weights", "history.jsonl"]
    assert fetch(store, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert not fetch(store.at("elsewhere"), tmp_path / "nothing")


def test_only_what_changed_is_put_again_and_what_it_replaces_goes(
    store: Store, tmp_path: Path
) -> None:
    folder, snapshots = attempt(tmp_path), Snapshots(store)
    snapshots.put(folder)
    assert snapshots.put(folder) == []
    with (folder / "history.jsonl").open("a") as file:
        file.write("line 2\n")
    assert snapshots.put(folder) == ["history.jsonl"]
    (folder / "adapter" / "config.json").unlink()
    assert snapshots.put(folder) == []
    assert store.names() == ["files/adapter/weights~1", "files/history.jsonl~3", MANIFEST]
    fetch(store, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_a_local_folder_gives_way_whole_and_other_files_stay(store: Store, tmp_path: Path) -> None:
    folder, back = attempt(tmp_path), tmp_path / "back"
    (back / "adapter").mkdir(parents=True)
    (back / "adapter" / "of an earlier probe").write_text("old")
    (back / "trial.yaml").write_text("the driver's own")
    Snapshots(store).put(folder)
    fetch(store, back, without="history.jsonl")
    assert contents(back) == {
        "adapter/config.json": b"{}",
        "adapter/weights": b"first",
        "trial.yaml": b"the driver's own",
    }
    fetch(store, tmp_path / "other", only="history.jsonl")
    assert list(contents(tmp_path / "other")) == ["history.jsonl"]


def test_a_reader_sees_the_folder_before_or_after_wherever_the_writer_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer dies at its n-th put or deletion, for every n until none is left."""
    for n in range(20):
        store = Store(root=str(tmp_path), patience=HASTY).at(f"storage-{n}")
        folder, snapshots = attempt(tmp_path / f"{n}"), Snapshots(store)
        snapshots.put(folder)
        before = contents(folder)
        (folder / "adapter" / "weights").write_bytes(b"second")
        (folder / "history.jsonl").write_text("line 1\nline 2\n")
        left = n
        with monkeypatch.context() as patch:

            def counted(real: object) -> object:
                def call(*arguments: object) -> object:
                    nonlocal left
                    if left == 0:
                        raise Killed
                    left -= 1
                    return real(*arguments)  # type: ignore[operator]

                return call

            for name in ("put", "put_file", "delete"):
                patch.setattr(Store, name, counted(getattr(Store, name)))
            with suppress(Killed):
                snapshots.put(folder)
        assert fetch(store, tmp_path / f"back-{n}")
        assert contents(tmp_path / f"back-{n}") in (before, contents(folder))
        if left:
            assert n > 3
            return
    raise AssertionError("the writer never came to its end")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "absent"])
def test_a_damaged_file_is_named_and_nothing_local_is_touched(tmp_path: Path, damage: str) -> None:
    store = Store(root=str(tmp_path), patience=HASTY).at("storage")
    folder = attempt(tmp_path)
    Snapshots(store).put(folder)
    stored = tmp_path / "storage" / "files" / "adapter" / "weights~1"
    content = stored.read_bytes()
    if damage == "absent":
        stored.unlink()
    else:
        stored.write_bytes(content[:-1] if damage == "truncated" else b"\0" + content[1:])
    (tmp_path / "back" / "adapter").mkdir(parents=True)
    (tmp_path / "back" / "adapter" / "weights").write_bytes(b"what was here")
    with pytest.raises(StorageError, match=r"weights~1"):
        fetch(store, tmp_path / "back")
    assert (tmp_path / "back" / "adapter" / "weights").read_bytes() == b"what was here"


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "a//b", ".hidden", "a\\..\\b", ""]
)
def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    store = Store(root=str(tmp_path), patience=HASTY)
    entry = {"stored": "files/a", "size": 0, "sha256": Printed().sha256}
    store.put(MANIFEST, json.dumps({"version": 1, "files": {name: entry}}).encode())
    with pytest.raises(StorageError, match="is no manifest"):
        read_manifest(store)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {"a": 1}}', b"\xff\xfe"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    store = Store(root=str(tmp_path), patience=HASTY)
    store.put(MANIFEST, content)
    with pytest.raises(StorageError, match="is no manifest; restore it"):
        fetch(store, tmp_path / "back")


def attempt(parent: Path) -> Path:
    """A folder as a trial leaves it, with what a crash may leave beside."""
    folder = parent / "attempt-1"
    (folder / "adapter").mkdir(parents=True)
    (folder / ".adapter.half").mkdir()
    (folder / ".adapter.half" / "weights").write_bytes(b"half")
    (folder / "adapter" / "weights").write_bytes(b"first")
    (folder / "adapter" / "config.json").write_bytes(b"{}")
    (folder / "history.jsonl").write_text("line 1\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    return {
        n.as_posix(): (folder / n).read_bytes()
        for n in names
        if not any(part.startswith(".") for part in n.parts)
    }
