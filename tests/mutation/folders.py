"""Damaged run folders: a good one of every state that a trial can be in, and what can happen to its files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mutation.mutants import mutant
from safetensors.numpy import save_file
from scripted_runs import NOTES, write_run

from core.store.durable import append_line, commit_json, commit_yaml
from core.store.told import RESULT_FILE
from core.training.lora_format import CONFIG_FILE, WEIGHTS_FILE, SavedLora
from tuning.committed import DECISIONS, Proposal, commit_proposal
from tuning.failures import FAILURE_FILE
from tuning.objective import Outcome
from tuning.records import EVENTS_FILE, LEDGER_FILE, LOCK_FILE, SPEC_FILE, attempt_folder
from tuning.run import Run
from tuning.samples import write_samples
from tuning.space import bind

Damage = Callable[[Path, random.Random], str]
"""Damages a run folder and says what it did."""


def good_run(folder: Path) -> Path:
    """A run with complete, pruned, failed, interrupted and infeasible trials, finalists, samples and events."""
    run = write_run(folder, notes={**NOTES, "ended": None})
    (folder / LOCK_FILE).write_text("pid 1 on nowhere since 2026-11-22\n", encoding="utf-8")
    (folder / "driver.log").write_text("2026-11-22 WARNING ray: a word\n", encoding="utf-8")
    for trial in run.trials:
        _fill(run, trial.number)
    write_samples(
        folder,
        0,
        1,
        [
            {"role": role, "prompt": "Who?", "truth": "me", "before": "me", "after": "you"}
            for role in ("forget", "retain")
        ],
    )
    return folder


def _fill(run: Run, number: int) -> None:
    """What a worker leaves of an attempt beside its history, and the driver's events of it."""
    trial = run.trials[number]
    attempt = attempt_folder(number, trial.attempt)
    place = run.path / attempt
    bound = bind(run.spec, trial.params, where=f"trial {number}")
    commit_yaml(place / "trial.yaml", bound.model_dump(mode="json"))
    (place / "log.txt").write_text("a line\n", encoding="utf-8")
    moment = f"2026-11-22T03:{number:02d}:"
    events = run.path / EVENTS_FILE
    append_line(
        events, {"time": f"{moment}00+00:00", "event": "TrialBegan", "number": number, "attempt": 1}
    )
    if trial.state == "FAIL":
        commit_json(
            place / FAILURE_FILE, {"kind": "Died", "message": "killed", "is_user_error": False}
        )
        append_line(events, {"time": f"{moment}30+00:00", "event": "TrialBroke", "number": number})
    born = {"proposed_by": trial.proposed_by}
    commit_proposal(place.parent, Proposal(params=trial.params, user_attrs=born, system_attrs={}))
    if trial.state in ("COMPLETE", "PRUNED"):
        told = {f.name: getattr(trial, f.name) for f in fields(Outcome)}
        record = {"number": number, "attempt": 1, **told, "adapter": trial.adapter}
        commit_json(place / RESULT_FILE, record | {"duration_s": 1.0, DECISIONS: {}})
        append_line(events, {"time": f"{moment}30+00:00", "event": "TrialEnded", "number": number})
    if trial.adapter is not None or trial.state == "RUNNING":
        (place / "adapter").mkdir()
        saved = SavedLora(
            base="package:smollm2", rank=4, alpha=8.0, targets=("q_proj",), is_transposed=False
        )
        commit_json(place / "adapter" / CONFIG_FILE, saved.as_json())
        factors = {"q_proj.lora_A.weight": np.ones((4, 8), np.float32)}
        save_file(factors, place / "adapter" / WEIGHTS_FILE)


@dataclass(frozen=True)
class Damaged:
    """A damaged run folder.

    Attributes:
        path: The folder.
        kinds: What was done; the second, if any, after the first.
        what: The same, with the places.
    """

    path: Path
    kinds: tuple[str, ...]
    what: str


def damaged(good: Path, copy: Path, seed: int) -> Damaged:
    """A copy of a run folder with the damage that belongs to a seed; the kinds take turns from seed to seed."""
    rng = random.Random(seed)
    shutil.copytree(good, copy, symlinks=True)
    every = list(DAMAGE)
    kinds = (every[seed % len(every)], *rng.sample(every, k=rng.random() < 0.15))
    return Damaged(copy, kinds, "; then ".join([DAMAGE[kind](copy, rng) for kind in kinds]))


def _a_file(run: Path, rng: random.Random, pattern: str = "*") -> Path | None:
    """A file of the folder; those that a run has once are met as often as all those of trials."""
    files = sorted(p for p in run.rglob(pattern) if p.is_file() and not p.is_symlink())
    once = [p for p in files if p.parent == run]
    chosen = once if once and (rng.random() < 0.5 or len(once) == len(files)) else files
    return rng.choice(chosen) if chosen else None


def _bytes(change: Callable[[bytes, random.Random], bytes], pattern: str = "*") -> Damage:
    """A file has other bytes."""

    def damage(run: Path, rng: random.Random) -> str:
        path = _a_file(run, rng, pattern)
        if path is None:
            return "nothing"
        path.write_bytes(change(path.read_bytes(), rng))
        return path.relative_to(run).as_posix()

    return damage


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[
        : rng.choice(
            (
                len(content) - 1,
                rng.randrange(len(content) + 1),
                len(content) // 8 * rng.randrange(8),
            )
        )
    ]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 40)) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _page_lost(content: bytes, rng: random.Random) -> bytes:
    """Some 512 bytes are zero, as a disk leaves what it never wrote, or those of another place."""
    if not content:
        return content
    size = 512
    at = rng.randrange(len(content)) // size * size
    other = rng.choice((bytes(size), content[:size], rng.randbytes(size)))
    return (content[:at] + other[: len(content) - at] + content[at + size :])[: len(content)]


def _mixed(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            content + content,
            content[::-1],
            content + b"\0" * 4096,
            b"\0" * len(content),
            b"\xff\xfe" + content,
        )
    )


def _other_kind(run: Path, rng: random.Random) -> str:
    """A file is a folder, a link that leads somewhere else or nowhere, a pipe, or gone."""
    path = _a_file(run, rng)
    if path is None:
        return "nothing"
    form = rng.choice(
        ("folder", "full folder", "dangling", "loop", "null", "other file", "pipe", "gone")
    )
    path.unlink()
    if form in ("folder", "full folder"):
        path.mkdir()
        if form == "full folder":
            (path / "inside").write_text("x", encoding="utf-8")
    elif form == "pipe":
        os.mkfifo(path)
    elif form == "other file":
        path.symlink_to(run / "driver.log")
    elif form != "gone":
        path.symlink_to(
            {"dangling": "/nonexistent/file", "loop": path.name, "null": "/dev/null"}[form]
        )
    return f"{path.relative_to(run)} {form}"


def _folder_lost(run: Path, rng: random.Random) -> str:
    """A folder is gone, or is a file."""
    path = rng.choice([p for p in sorted(run.rglob("*")) if p.is_dir()] or [run / "trials"])
    shutil.rmtree(path, ignore_errors=True)
    if rng.random() < 0.5 and not path.exists() and path.parent.is_dir():
        path.write_text("a file\n", encoding="utf-8")
    return path.relative_to(run).as_posix()


def _unreadable(run: Path, rng: random.Random) -> str:
    """A file or folder that the one who looks may not read."""
    path = rng.choice([p for p in sorted(run.rglob("*")) if not p.is_symlink()])
    path.chmod(0)
    return path.relative_to(run).as_posix()


def _yaml(run: Path, rng: random.Random) -> str:
    """Values of a YAML file are others."""
    path = _a_file(run, rng, "*.yaml")
    if path is None:
        return "nothing"
    seed = rng.getrandbits(32)
    with contextlib.suppress(ValueError, AttributeError, yaml.YAMLError):  # damaged before
        path.write_bytes(mutant(path.read_bytes(), seed).content)
    return f"{path.relative_to(run)} mutant {seed}"


_ODD_JSON: Sequence[Any] = (
    None, True, -1, 0, 3, 2**70, -1e308, 1e999, "", "x", "nan", "inf", "1e-4", [], {}, [1], [[]], {"a": 1}, [1, 2, 3],
    ["nan", "inf"], "a" * 5_000, "<script>alert(1)</script>", "\x1b[31m", "\ud83d", "../../etc/passwd", "/etc/passwd",
)  # fmt: skip


def _with_other_value(value: Any, rng: random.Random) -> Any:
    """JSON with one of its values another, absent, or under another name."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = (
            list(node)
            if isinstance(node, dict)
            else range(len(node))
            if isinstance(node, list)
            else ()
        )
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places or rng.random() < 0.1:
        return rng.choice(_ODD_JSON)
    owner, key = rng.choice(places)
    if rng.random() < 0.25:
        del owner[key]
    else:
        owner[key] = rng.choice(_ODD_JSON)
    return value


def _json(run: Path, rng: random.Random) -> str:
    """Values of a JSON file, or of a line of one, are others."""
    path = _a_file(run, rng, rng.choice(("*.json", "*.jsonl", "history.jsonl", "events.jsonl")))
    if path is None:
        return "nothing"
    with contextlib.suppress(ValueError):  # damaged before
        if path.suffix == ".json":
            found = _with_other_value(json.loads(path.read_bytes()), rng)
            path.write_text(json.dumps(found), encoding="utf-8")
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            at = rng.randrange(len(lines)) if lines else 0
            lines[at : at + 1] = [
                json.dumps(_with_other_value(json.loads(line), rng)) for line in lines[at : at + 1]
            ]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.relative_to(run).as_posix()


def _lines(run: Path, rng: random.Random) -> str:
    """Lines of a log of lines are missing, in another order, twice, or another file's."""
    path = _a_file(run, rng, "*.jsonl")
    if path is None:
        return "nothing"
    lines = path.read_bytes().splitlines(keepends=True)
    form = rng.choice(("missing", "order", "twice", "other", "empty lines", "huge"))
    at = rng.randrange(len(lines) + 1)
    if form == "missing":
        del lines[at : at + rng.choice((1, 2, 100))]
    elif form == "order":
        rng.shuffle(lines)
    elif form == "twice":
        lines[at:at] = lines[: rng.choice((1, 100))]
    elif form == "other":
        other = _a_file(run, rng, "*.jsonl")
        lines[at:at] = other.read_bytes().splitlines(keepends=True) if other else []
    elif form == "huge":
        lines = lines * 3_000
    else:
        lines[at:at] = [b"\n", b"{}\n", b"\n"]
    path.write_bytes(b"".join(lines))
    return f"{path.relative_to(run)} {form}"


def _others(run: Path, rng: random.Random) -> str:
    """A file, or a folder, is that of another trial."""
    pattern = rng.choice(
        (RESULT_FILE, "proposal.json", "history.jsonl", "trial.yaml", "*.yaml", "*.json*")
    )
    one, other = _a_file(run, rng, pattern), _a_file(run, rng, pattern)
    if one is None or other is None or one == other:
        return "nothing"
    one.write_bytes(other.read_bytes())
    return f"{one.relative_to(run)} is {other.relative_to(run)}"


def _sql(*statements: str) -> Damage:
    """One of these is done to the ledger."""

    def damage(run: Path, rng: random.Random) -> str:
        statement = rng.choice(statements)
        number, odd = rng.randrange(9), json.dumps(rng.choice(_ODD_JSON))
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(run / LEDGER_FILE)) as database,
        ):
            keys = [
                k
                for (k,) in database.execute(
                    "SELECT DISTINCT key FROM trial_user_attributes ORDER BY key"
                )
            ]
            notes = [
                k for (k,) in database.execute("SELECT key FROM study_user_attributes ORDER BY key")
            ]
            values = {
                "number": number,
                "odd": odd,
                "key": rng.choice(keys),
                "note": rng.choice(notes),
            }
            with database:
                database.execute(
                    statement, {k: v for k, v in values.items() if f":{k}" in statement}
                )
            return f"{statement} {values}"
        return f"{statement} failed"

    return damage


_OF = "trial_id = (SELECT trial_id FROM trials WHERE number = :number)"
_TABLES = (
    "trials", "trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values", "studies",
    "study_directions", "study_user_attributes", "trial_intermediate_values", "version_info", "alembic_version",
)  # fmt: skip
_VALUES = _sql(
    f"UPDATE trial_user_attributes SET value_json = :odd WHERE key = :key AND {_OF}",
    f"UPDATE trial_user_attributes SET value_json = :odd WHERE key IN ('params', 'metrics', 'value') AND {_OF}",
    f"UPDATE trial_user_attributes SET value_json = '{{' WHERE key = :key AND {_OF}",
    f"DELETE FROM trial_user_attributes WHERE key = :key AND {_OF}",
    f"DELETE FROM trial_user_attributes WHERE key = 'params' AND {_OF}",
    "UPDATE study_user_attributes SET value_json = :odd WHERE key = :note",
    "DELETE FROM study_user_attributes WHERE key = :note",
    f"UPDATE trial_params SET param_value = -7 WHERE {_OF}",
    f"DELETE FROM trial_params WHERE {_OF}",
    f"DELETE FROM trial_values WHERE {_OF}",
    f"UPDATE trial_system_attributes SET value_json = :odd WHERE {_OF}",
    f"UPDATE trial_intermediate_values SET intermediate_value = NULL WHERE {_OF}",
    "UPDATE trial_user_attributes SET value_json = :odd WHERE key LIKE '%:%'",
)
_ROWS = _sql(
    "DELETE FROM trials WHERE number = :number",
    "DELETE FROM trials",
    "UPDATE trials SET number = number + 5 WHERE number >= :number",
    "UPDATE trials SET number = NULL WHERE number = :number",
    "UPDATE trials SET state = 'RUNNING' WHERE number = :number",
    "UPDATE trials SET state = 'COMPLETE' WHERE number = :number",
    "UPDATE trials SET state = 'WAITING' WHERE number = :number",
    "UPDATE trials SET state = 'ODD' WHERE number = :number",
    "DELETE FROM studies",
    "UPDATE studies SET study_name = 'another'",
    "INSERT INTO studies (study_name) VALUES ('second')",
    "UPDATE study_directions SET direction = 'MINIMIZE'",
    *(f"DROP TABLE {table}" for table in _TABLES),
    *(f"DELETE FROM {table}" for table in _TABLES),
)


def _other_ledger(run: Path, rng: random.Random) -> str:
    """The ledger, or the sweep, is that of another run, or none."""
    form = rng.choice(
        ("empty database", "another database", "another study", "another sweep", "text")
    )
    path = run / (SPEC_FILE if form == "another sweep" else LEDGER_FILE)
    if not path.is_file():
        return "nothing"
    path.unlink()
    if form in ("another study", "another sweep"):
        space = {"optimizer.weight_decay": {"float": {"low": 0.0, "high": 0.1}, "why": "other"}}
        changes: Mapping[str, Any] = {
            "space": space,
            "start_from": [],
            "optimizer": {"learning_rate": 1e-4},
        }
        other = write_run(run.with_name(f"{run.name}-other"), changes=changes)
        shutil.copyfile(other.path / path.name, path)
        shutil.rmtree(other.path)
    elif form == "text":
        path.write_text("no ledger\n" * 1_000, encoding="utf-8")
    else:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            if form == "another database":
                database.execute("CREATE TABLE trials (number INTEGER, state TEXT)")
            database.execute("PRAGMA user_version = 3")
    return form


def _left_over(run: Path, rng: random.Random) -> str:
    """What a crash leaves beside the files: a journal of SQLite, halves of commits, a huge log."""
    name, content = rng.choice(
        (
            (f"{LEDGER_FILE}-journal", rng.randbytes(600)),
            (f"{LEDGER_FILE}-wal", rng.randbytes(600)),
            (f".{SPEC_FILE}.0123", b"half"),
            ("trials/0003/attempt-2/history.jsonl", b""),
            ("trials/9999/attempt-1/result.json", b"{}"),
            ("trials/what", b"is this"),
            (EVENTS_FILE, b'{"event": "TrialProbed"}\n' * 200_000),
        )
    )
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        (run / name).write_bytes(content)
    return name


DAMAGE: Mapping[str, Damage] = {
    "truncated": _bytes(_cut),
    "emptied": _bytes(lambda content, rng: b""),
    "bits flipped": _bytes(_flipped),
    "bits of the ledger flipped": _bytes(_flipped, LEDGER_FILE),
    "block lost": _bytes(_page_lost),
    "content mixed": _bytes(_mixed),
    "other kind of file": _other_kind,
    "folder lost": _folder_lost,
    "unreadable": _unreadable,
    "values of YAML": _yaml,
    "values of JSON": _json,
    "lines of a log": _lines,
    "another trial's file": _others,
    "values of the ledger": _VALUES,
    "rows of the ledger": _ROWS,
    "another run's ledger": _other_ledger,
    "left over": _left_over,
}
"""By name."""
