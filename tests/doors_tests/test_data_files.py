"""Rows from a file or a library of any content are read, or refused with role, file, row and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from command_line import Command, ends_refused, write

from core.config import SourceConfig
from core.data.sources import read_rows
from core.errors import DataError

NO_ROWS = [
    pytest.param("rows.jsonl", '{"text": "a"}\n'.encode("utf-16"), ":1: is not UTF-8 but UTF-16; convert", id="utf-16"),
    pytest.param("rows.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', ":2: is not UTF-8, got the byte", id="latin-1"),
    pytest.param("rows.jsonl", b'{"text": "\\ud83d"}\n', ":1: holds half of a character, \\ud83d", id="half"),
    pytest.param("rows.jsonl", b'{"text": "a"}\n{"text": "b"\n', ":2: not JSON: Expecting ',' delimiter", id="torn"),
    pytest.param("rows.jsonl", b"[" * 100_000, ":1: not JSON that can be read: nested too deeply", id="deep"),
    pytest.param("rows.jsonl", b'{"text": "a"}\n[1]\n', ":2: each line must be an object, got list", id="list"),
    pytest.param("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ":1: is a pointer of Git", id="lfs"),
    pytest.param("rows.jsonl", b"<html></html>", ":1: not JSON: Expecting value", id="a-web-page"),
    pytest.param("rows.txt", "a\n\nb".encode("utf-16"), ":1: is not UTF-8 but UTF-16", id="text-utf-16"),
    pytest.param("rows.txt", b"a\n\n\xff", ":3: is not UTF-8, got the byte 0xff", id="text-bytes"),
    pytest.param("rows.parquet", b"PAR1", " is not a Parquet file that can be read: ", id="torn-parquet"),
    pytest.param("rows.parquet", b"", " is not a Parquet file that can be read: ", id="empty-parquet"),
    pytest.param("rows.npy", b"", " is not a .npy file of numbers", id="empty-npy"),
    pytest.param("rows.npy", b"\x93NUMPY\x01\x00\xff\xff{", " is not a .npy file of numbers", id="torn-npy"),
    pytest.param("rows.npy", b"\x93NUMPY\x09\x00", " is not a .npy file of numbers: version 9.0", id="new-npy"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "problem"), NO_ROWS)
def test_a_file_without_rows_is_refused(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(SourceConfig(source=str(path)), role="forget")
    assert str(caught.value).startswith(f"data.forget: {path}{problem}")


def in_time(path: Path) -> None:
    """A day that Python's calendar does not have."""
    days = pyarrow.array([-10_000_000], type=pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"text": days}), path)


def objects(path: Path) -> None:
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


def structures(path: Path) -> None:
    np.save(path, np.zeros((1, 2), dtype=[("a", "i4")]))


def floats(path: Path) -> None:
    np.save(path, np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("name", "made", "problem"),
    [
        pytest.param("rows.parquet", in_time, "is not a Parquet file that can be read", id="time"),
        pytest.param("rows.npy", objects, "an integer array of shape", id="pickled"),
        pytest.param("rows.npy", structures, "an integer array of shape", id="structures"),
        pytest.param("rows.npy", floats, "an integer array of shape", id="floats"),
    ],
)
def test_a_file_of_other_things_is_refused(
    tmp_path: Path, name: str, made: Callable[[Path], None], problem: str
) -> None:
    made(tmp_path / name)
    with pytest.raises(DataError, match=rf"^data\.forget: .*{name}.*{problem}"):
        read_rows(SourceConfig(source=str(tmp_path / name)), role="forget")


def card(folder: Path) -> None:
    folder.joinpath("README.md").write_text("---\n{\n---\n", encoding="utf-8")


def script(folder: Path) -> None:
    folder.joinpath(f"{folder.name}.py").write_text("raise SystemExit", encoding="utf-8")


def utf16(folder: Path) -> None:
    folder.joinpath("a.json").write_bytes('{"text": "a"}\n'.encode("utf-16"))


def zipped(folder: Path) -> None:
    folder.joinpath("a.zip").write_bytes(b"PK\x03\x04 no archive")


@pytest.mark.parametrize("made", [card, script, utf16, zipped, lambda _: None])
@pytest.mark.filterwarnings("ignore")
def test_whatever_the_library_raises_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    mirror = tmp_path / "set"
    mirror.mkdir()
    made(mirror)
    source = SourceConfig(source="hub:org/set", mirror=str(mirror))
    with pytest.raises(DataError) as caught:
        read_rows(source, role="retain")
    assert str(caught.value).startswith("data.retain.mirror: cannot load 'hub:org/set'")
    assert "copy org/set there once more" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_command_ends_with_the_row(tune: Command, tiny_model: Path) -> None:
    Path("rows.jsonl").write_bytes('{"text": "a"}\n'.encode("utf-16"))
    file = write({"forget": {"source": "rows.jsonl"}}, Path("roles.yaml"))
    done = tune("evaluate", tiny_model, "--suite", "probes", "--data", file)
    ends_refused(
        done, "data.forget: ", "rows.jsonl:1: is not UTF-8 but UTF-16; convert it with `iconv"
    )
