"""Small files that would grow into large ones, or nest without end, are one error: YAML, JSON, archives."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, ends_refused, is_refused
from security.conftest import one_line

from core.config import ModelConfig, SourceConfig
from core.data.sources import read_rows
from core.errors import DataError, FileError, ModelError, UserError
from core.model.source import model_identity
from core.store import texts
from core.store.texts import read_json
from tuning.resources import read_largest
from tuning.run import Run

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
)
DEEP = 5_000
YAML_BOMBS = [
    pytest.param(LAUGHS, "", id="billion-laughs"),
    pytest.param("a: " + "[" * DEEP, "nested too deeply", id="deep-flow"),
    pytest.param("a: &a [*a]", "", id="alias-of-itself"),
    pytest.param("a: 1\na: 2", "twice", id="key-twice"),
    pytest.param("a: !!python/object/apply:os.system [id]", "", id="python-object"),
    pytest.param("a: !!python/name:os.system", "", id="python-name"),
    pytest.param("#" * (1 << 20) + "\na: 1", "bytes", id="too-large"),
]
READERS = {
    "sweep": ["sweep", "FILE"],
    "dry run": ["sweep", "FILE", "--dry-run"],
    "validate": ["validate", "FILE"],
    "train": ["train", "FILE", "--out", "out"],
    "prepare": ["prepare", "FILE", "--out", "out"],
    "evaluate": ["evaluate", "MODEL", "--suite", "probes", "--data", "FILE"],
}


@pytest.mark.parametrize(("text", "rule"), YAML_BOMBS)
@pytest.mark.parametrize("reader", READERS)
def test_yaml_that_grows_or_names_python_is_one_error(
    tune: Command, tiny_model: Path, reader: str, text: str, rule: str
) -> None:
    Path("file.yaml").write_text(text, encoding="utf-8")
    known = {"FILE": "file.yaml", "MODEL": str(tiny_model)}
    is_refused(tune(*(known.get(word, word) for word in READERS[reader])), "file.yaml", rule)


@pytest.mark.parametrize(("text", "rule"), YAML_BOMBS)
def test_a_cluster_file_that_grows_is_one_error(tune: Command, text: str, rule: str) -> None:
    Path("cluster.yaml").write_text(f"cluster_name: x\n{text}", encoding="utf-8")
    is_refused(tune("validate", "cluster.yaml"))


def test_a_value_on_the_command_line_that_grows_is_one_error(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    Path("file.yaml").write_text(json.dumps(tiny_sweep), encoding="utf-8")
    for text in ("[" * DEEP, "&a [*a]", "!!python/name:os.system"):
        is_refused(tune("sweep", "file.yaml", "--set", f"seed={text}"), "--set seed")


@pytest.mark.parametrize("text", [LAUGHS, "a: " + "[" * DEEP], ids=["laughs", "deep"])
def test_the_file_that_ray_leaves_on_a_head_is_read_so_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "ray.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is no cluster file of Ray's") as err:
        read_largest(tmp_path / "ray.yaml")
    one_line(err)


NESTED = '{"a":' * DEEP + "1" + "}" * DEEP


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.ndjson"])
def test_json_rows_that_nest_without_end_are_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(NESTED, encoding="utf-8")
    with pytest.raises(DataError, match="nested too deeply") as err:
        read_rows(SourceConfig(source=str(tmp_path / name)), role="forget")
    one_line(err)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_whose_json_nests_without_end_is_one_error(model_copy: Path, name: str) -> None:
    header = len(NESTED).to_bytes(8, "little") if name.endswith("safetensors") else b""
    (model_copy / name).write_bytes(header + NESTED.encode())
    with pytest.raises(ModelError, match=r"^model\.source: ") as err:
        model_identity.__wrapped__(ModelConfig(source=str(model_copy)))
    one_line(err)


def test_a_run_whose_json_nests_without_end_is_one_error(tune: Command, sample_run: Run) -> None:
    names = ("samples.json", "events.jsonl")
    for name in names:
        (sample_run.path / name).write_text(NESTED + "\n", encoding="utf-8")
    done = tune("report", sample_run.path)  # goes on without them
    assert (done.status, "Traceback" in done.err) == (0, False), done.err
    assert all(f"{name}" in done.err for name in names)
    assert done.err.count("nested too deeply") == len(names)
    (sample_run.path / "spec.yaml").write_text(NESTED + "\n", encoding="utf-8")
    ends_refused(tune("report", sample_run.path), "spec.yaml")


@pytest.mark.parametrize("table", ["trial_user_attributes", "study_user_attributes"])
def test_a_ledger_whose_json_nests_without_end_is_one_error(
    tune: Command, sample_run: Run, table: str
) -> None:
    with sqlite3.connect(sample_run.path / "ledger.db") as database:
        database.execute(f"UPDATE {table} SET value_json = ?", (NESTED,))
    for verb in ("status", "best"):
        is_refused(tune(verb, sample_run.path), "ledger.db: the ledger cannot be read")


def test_one_json_value_has_a_largest_size(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(texts.MOST_JSON_BYTES + 1)  # takes no room on the disk
    with pytest.raises(FileError, match="holds one JSON value of 268435457 bytes") as err:
        read_json(tmp_path / "large.json")
    one_line(err)


def test_an_archive_that_grows_a_thousandfold_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MOST_UNPACKED_BYTES", 1 << 20)
    row = json.dumps({"text": "x" * 1000}) + "\n"
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(row.encode() * 4000))
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes, 100 times") as err:
        read_rows(SourceConfig(source=str(tmp_path / "bomb.jsonl.gz")), role="forget")
    one_line(err)
    (tmp_path / "line.jsonl.gz").write_bytes(gzip.compress(b" " * (4 << 20)))
    with pytest.raises(DataError, match="unpacks to more than") as err:
        read_rows(SourceConfig(source=str(tmp_path / "line.jsonl.gz")), role="forget")
    (tmp_path / "line.txt").write_bytes(b" " * (2 << 20))
    with pytest.raises(DataError, match="has a line of more than 1048576 bytes") as err:
        read_rows(SourceConfig(source=str(tmp_path / "line.txt")), role="forget")
    one_line(err)


def test_an_archive_of_ordinary_text_is_read_whole(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {n} of some {n * 7919} words"}) for n in range(200)]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    assert len(read_rows(SourceConfig(source=str(tmp_path / "rows.jsonl.gz")), role="r")) == 200
