"""No verb sends a control sequence of another's to the terminal, and none shows turned-around text."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import COMMANDS, Command, write
from small_sweep import values

from core.store.durable import commit_yaml
from tuning.files import read_yaml
from tuning.records import attempt_folder
from tuning.run import Run

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eexe.txt\u2066\r\x08[red]x[/red]"
RAW = "\x1b\x07\x9b\u202e\u2066\r\x08"


def poison(run: Run) -> None:
    """The run with control sequences in what its verbs show."""
    with sqlite3.connect(run.path / "ledger.db") as database:
        for key in ("reason", "stopped_by", "proposed_by"):
            database.execute(
                "UPDATE trial_user_attributes SET value_json = ? WHERE key = ?",
                (json.dumps(EVIL), key),
            )
        query = "SELECT trial_id, value_json FROM trial_user_attributes WHERE key = 'params'"
        for trial, params in database.execute(query).fetchall():
            changed = json.loads(params) | {EVIL: EVIL}
            database.execute(
                "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'params' AND trial_id = ?",
                (json.dumps(changed), trial),
            )
    spec = read_yaml(run.path / "spec.yaml")
    spec["sweep"]["space"]["adapter.rank"]["why"] = EVIL
    spec["sweep"]["start_from"][0]["source"] = EVIL
    spec |= {"versions": {EVIL: EVIL}, "warnings": [EVIL], "scale": EVIL, "file": EVIL}
    commit_yaml(run.path / "spec.yaml", spec)
    log = run.path / attempt_folder(5, 1) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(EVIL, encoding="utf-8")


def assert_shown_safely(text: str) -> None:
    found = [sign for sign in RAW if sign in text]
    assert not found, (found, text[:2000])


READING = [
    *(["status"], ["status", "--json"], ["best"], ["best", "--format", "json"]),
    *(["best", "--format", "yaml"], ["best", "--format", "csv"], ["advise"], ["advise", "--json"]),
    *(["show", "0"], ["show", "5"], ["show", "8"], ["export", "--out", "o"]),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_run_of_anybody_is_shown_safely(tune: Command, sample_run: Run, words: list[str]) -> None:
    poison(sample_run)
    verb, *others = words
    done = tune(verb, sample_run.path, *others)
    assert done.status in (0, 2, 3), done
    assert_shown_safely(done.out + done.err)


def test_runs_side_by_side_are_shown_safely(tune: Command, sample_run: Run) -> None:
    poison(sample_run)
    done = tune("compare", sample_run.path, sample_run.path)
    assert_shown_safely(done.out + done.err)


FILES: list[Any] = [
    pytest.param(["sweep", "FILE"], id="sweep"),
    pytest.param(["sweep", "FILE", "--dry-run"], id="dry-run"),
    pytest.param(["validate", "FILE"], id="validate"),
    pytest.param(["train", "FILE", "--out", "o"], id="train"),
    pytest.param(["prepare", "FILE", "--out", "o"], id="prepare"),
    pytest.param(["evaluate", EVIL, "--suite", "probes", "--data", "FILE"], id="evaluate"),
    pytest.param(["evaluate", "hub:a/b", "--suite", EVIL], id="suite"),
    pytest.param(["sweep", "FILE", "--set", f"{EVIL}={EVIL}"], id="set"),
    pytest.param(["sweep", "FILE", "--name", EVIL], id="name"),
    pytest.param(["status", EVIL], id="no-run"),
    pytest.param(["reproduce", EVIL], id="no-guideline"),
    pytest.param(["cache", "clear", "--kind", EVIL], id="no-kind"),
]


@pytest.mark.parametrize("words", FILES)
@pytest.mark.parametrize("content", ["keys", "values", "torn"])
def test_a_file_of_anybody_is_refused_safely(tune: Command, words: list[str], content: str) -> None:
    if content == "torn":
        Path("file.yaml").write_text(f"a: [{EVIL!r}\n'{EVIL}", encoding="utf-8")
    else:
        read = values({"method.forget_loss": EVIL, "model.source": EVIL, "name": EVIL})
        read |= {EVIL: {EVIL: EVIL}} if content == "keys" else {}
        write(read, Path("file.yaml"))
        assert yaml.safe_load(Path("file.yaml").read_text(encoding="utf-8"))
    done = tune(*("file.yaml" if word == "FILE" else word for word in words))
    assert done.status == 2, done
    assert_shown_safely(done.err + done.out)


def test_every_verb_that_reads_a_run_is_among_them() -> None:
    shown = {words[0] for words in READING} | {"compare"}
    reading = {
        name
        for name, command in COMMANDS.items()
        if any(p.name in ("run", "runs") for p in command.params)
    }
    servers_and_sweeps = {"report", "dashboard", "repeat", "resume", "retry", "repair"}
    assert reading - shown <= servers_and_sweeps
