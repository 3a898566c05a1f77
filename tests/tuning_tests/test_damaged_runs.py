"""A run folder that was damaged or copied by halves is one error, whatever looks at it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from command_line import Command, is_refused

from core.store.durable import append_line, checksum
from tuning.records import LEDGER_FILE, SPEC_FILE, attempt_folder
from tuning.run import Run

Damage = Callable[[Path], object]


def written(name: str, content: bytes) -> Damage:
    return lambda run: (run / name).write_bytes(content)


def cut(name: str) -> Damage:
    def damage(run: Path) -> None:
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 3])

    return damage


def changed_ledger(statement: str) -> Damage:
    def damage(run: Path) -> None:
        with closing(sqlite3.connect(run / LEDGER_FILE)) as database, database:
            database.execute(statement)

    return damage


SPEC_DAMAGE = [
    pytest.param(written(SPEC_FILE, b""), "a mapping is expected, got NoneType", id="empty"),
    pytest.param(written(SPEC_FILE, b"\xff\xfes\0"), "is not UTF-8 but UTF-16", id="utf-16"),
    pytest.param(cut(SPEC_FILE), "", id="torn"),
    pytest.param(written(SPEC_FILE, b"sweep: 3\n"), "sweep: required, but absent", id="no-sweep"),
]
LEDGER_DAMAGE = [
    pytest.param(written(LEDGER_FILE, b""), "the ledger cannot be read", id="empty"),
    pytest.param(written(LEDGER_FILE, b"no database" * 99), "the ledger cannot be read", id="other-file"),
    pytest.param(cut(LEDGER_FILE), "the ledger cannot be read", id="torn"),
    pytest.param(changed_ledger("DROP TABLE trial_user_attributes"), "the ledger cannot be read", id="no-table"),
    pytest.param(
        changed_ledger("UPDATE trial_user_attributes SET value_json = '{'"), "the ledger cannot be read", id="no-json"
    ),
    pytest.param(
        changed_ledger("UPDATE trial_user_attributes SET value_json = '3' WHERE key = 'intervals'"),
        "the ledger cannot be read", id="other-values",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), [*SPEC_DAMAGE, *LEDGER_DAMAGE])
@pytest.mark.parametrize(
    "verb", [("status",), ("best", "--json"), ("show", "0"), ("report",), ("export", "--out", "x"), ("resume",)],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_a_damaged_run_is_refused_by_every_verb(
    tune: Command, sample_run: Run, damage: Damage, said: str, verb: tuple[str, ...]
) -> None:
    damage(sample_run.path)
    name, *rest = verb
    is_refused(tune(name, sample_run.path, *rest), f"error: {sample_run.path}", said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b'{"step": 0\n{"step": 1}\n', ":1: not JSON: ", id="torn"),
        pytest.param(b'{"step": 0, "metrics": {}}\n\xff\n', ":2: is not UTF-8", id="bytes"),
        pytest.param(b"3\n", ": record 1: an object is expected, got 3", id="number"),
    ],
)
def test_a_damaged_history_is_named(
    tune: Command, sample_run: Run, content: bytes, said: str
) -> None:
    history = sample_run.path / attempt_folder(0, 1) / "history.jsonl"
    history.parent.mkdir(parents=True, exist_ok=True)
    history.write_bytes(content)
    is_refused(tune("show", sample_run.path, "0"), f"error: {history}{said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"{", ":1: not JSON: ", id="torn"),
        pytest.param(b"[]", ": is not what a trial saved (TypeError: ", id="list"),
        pytest.param(b"\xff", ":1: is not UTF-8", id="bytes"),
    ],
)
def test_a_damaged_adapter_is_not_exported(
    tune: Command, sample_run: Run, content: bytes, said: str
) -> None:
    (record,) = (t for t in sample_run.trials if t.number == 0)
    assert record.adapter is not None
    folder = sample_run.path / record.adapter
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_bytes(content)
    done = tune("export", sample_run.path, "--trial", "0", "--out", "out")
    is_refused(done, f"error: {folder / 'adapter_config.json'}{said}")
    assert not Path("out").exists()


def test_an_adapter_that_is_not_what_the_trial_saved_is_not_exported(
    tune: Command, sample_run: Run
) -> None:
    (record,) = (t for t in sample_run.trials if t.number == 0)
    assert record.adapter is not None
    weights = sample_run.path / record.adapter / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"saved")
    line = {"step": 7, "metrics": {}, "adapter_sha256": checksum(weights)}
    append_line(sample_run.path / attempt_folder(0, 1) / "history.jsonl", line)
    weights.write_bytes(b"sawed")
    done = tune("export", sample_run.path, "--trial", "0", "--out", "out")
    is_refused(done, f"error: {weights}: is not what the trial saved (its checksum differs)")
    assert not Path("out").exists()


def test_what_sqlite_says_of_a_disk_is_the_systems_word(sample_run: Run) -> None:
    from core.store.refusal import refusal
    from tuning.ledger import Ledger

    (sample_run.path / LEDGER_FILE).unlink()
    (sample_run.path / LEDGER_FILE).mkdir()
    with pytest.raises(OSError) as caught:
        Ledger(sample_run.path, sample_run.spec, create=False)
    said = refusal(caught.value)
    assert (
        said is not None
        and f"{sample_run.path.resolve() / LEDGER_FILE}: Permission denied (SQLite: " in said
    )
