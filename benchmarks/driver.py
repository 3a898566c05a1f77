"""What the driver costs for each trial, and how long the verbs take that read a ledger, as a sweep grows.

A sweep is driven without Ray and without a model: the real dispatcher and ledger on the disk, and a worker whose
probes are a formula. The first trials are driven; then copies of them with other values are inserted into the ledger
until it has as many as wanted, and some more trials are driven and timed: what it takes to ask for a trial, to take
its probes and to conclude it. Verbs are whole processes, from the command to their exit.

Samplers: with ``none`` the points are enqueued in the study beforehand, so that what is left is the ledger.

CPU time is printed beside the clock: the clock holds waiting for the disk, too, one ``fsync`` of which is timed in the
same run.

    python benchmarks/driver.py --out benchmarks/results/driver

It writes ``driver.json`` and ``driver.md``.
"""

import argparse
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

from core.measuring.selection import Probe
from core.model.machine import processor
from core.store.durable import commit_yaml
from tuning.concluding import SAVED_LAST
from tuning.config import SweepSpec
from tuning.dispatcher import Assignment, Dispatcher
from tuning.events import EventLog, Silent
from tuning.files import parse_sweep
from tuning.ledger import Ledger
from tuning.records import LEDGER_FILE, SPEC_FILE

PROBES = 10
VERBS = (
    ("status",),
    ("status", "--json"),
    ("best",),
    ("best", "--top", "10", "--json"),
    ("best", "--json"),
    ("show", "best"),
    ("show", "7", "--json"),
)
RATE, RANK, DECAY = "optimizer.learning_rate", "adapter.rank", "optimizer.weight_decay"
TABLES = {
    "trial_params": "param_id",
    "trial_values": "trial_value_id",
    "trial_user_attributes": "trial_user_attribute_id",
    "trial_system_attributes": "trial_system_attribute_id",
    "trial_intermediate_values": "trial_intermediate_value_id",
}
"""Tables of a ledger that hold what a trial has, each with its key."""


def sweep(sampler: str, *, seed: int) -> SweepSpec:
    """A sweep over three fields."""
    why = {"why": "for timing"}
    return parse_sweep(
        {
            "schema": 1,
            "name": "driver",
            "model": {"source": "package:smollm2"},
            "data": {
                r: {"source": f"embedded:{r}"}
                for r in ("forget", "retain", "approximate", "general")
            },
            "method": {"forget_loss": "ihl"},
            "space": {
                RATE: {"float": {"low": 1e-5, "high": 1e-2, "log": True}} | why,
                RANK: {"categorical": [4, 8, 16]} | why,
                DECAY: {"float": {"low": 0.0, "high": 1.0}} | why,
            },
            "pruning": {"retain": {"limit": 0.1, "hard_limit": 0.5}},
            "budget": {"trials": 10**6, "max_steps": PROBES},
            "sampler": {"name": "random" if sampler == "none" else sampler, "seed": seed},
        },
        where="benchmark",
    )


def probes(assignment: Assignment) -> Iterator[Probe]:
    """A worker: a closure that rises to its best at a learning rate of 1e-3."""
    saved = assignment.folder / "adapter" / SAVED_LAST[0]
    saved.parent.mkdir(parents=True)
    saved.touch()
    rate = assignment.trial.optimizer.learning_rate
    best = 1.0 - 0.3 * abs(math.log10(rate) + 3.0)
    for step in range(1, PROBES + 1):
        closure = best * step / PROBES
        metrics = {"forget_closure": closure, "forget_nll": 1.0 + closure, "retain_drop": 0.02}
        metrics |= {"general_drop": -0.01, "forget_accuracy": 0.5, "retain_utility": 0.99}
        intervals = {"forget_closure": (closure - 0.02, min(1.0, closure + 0.02))}
        intervals |= dict.fromkeys(("retain_drop", "general_drop"), (-0.05, 0.05))
        yield Probe(
            step=step,
            metrics=metrics,
            seconds=float(step),
            stopped_by="budget" if step == PROBES else None,
            intervals=intervals,
        )


class Stopwatch:
    """Seconds by the clock and of CPU time, by what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        clock, cpu = time.perf_counter(), time.process_time()
        found = work(*arguments)
        kept = self.seconds[name]
        kept[0] += time.perf_counter() - clock
        kept[1] += time.process_time() - cpu
        return found


def enqueue(run_dir: Path, count: int, *, seed: int) -> None:
    """Points for the next trials, in the ledger."""
    drawn = random.Random(seed)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run_dir / LEDGER_FILE}")
    for _ in range(count):
        rate, rank = 10 ** drawn.uniform(-5, -2), drawn.choice([4, 8, 16])
        study.enqueue_trial({RATE: rate, RANK: rank, DECAY: drawn.random()})


def drive(spec: SweepSpec, run_dir: Path, count: int) -> dict[str, list[float]]:
    """Drive ``count`` trials; seconds a trial, by the clock and of CPU, of asking, reporting and concluding."""
    watch = Stopwatch()
    ledger = watch(
        "open", lambda: Ledger(run_dir, spec, create=not (run_dir / LEDGER_FILE).exists())
    )
    log = EventLog(run_dir / "events.jsonl", Silent())
    dispatcher = Dispatcher(spec, run_dir, ledger, log, target=10**6)
    for _ in range(count):
        assignment = watch("ask", dispatcher.next)
        for probe in probes(assignment):
            watch("reports", dispatcher.take, assignment.number, probe)
        watch("tell", dispatcher.finish, assignment.number)
    opened = watch.seconds.pop("open")
    found = {name: [s / count for s in both] for name, both in watch.seconds.items()}
    found["trial"] = [sum(both) for both in zip(*found.values(), strict=True)]
    return found | {"open": opened}


def grow(run_dir: Path, size: int, *, seed: int) -> None:
    """Insert copies of the trials of a ledger, with other rates and values, until it has ``size``."""
    drawn = random.Random(seed)
    with closing(sqlite3.connect(run_dir / LEDGER_FILE)) as database:
        database.execute("PRAGMA synchronous = OFF")
        trials = database.execute("SELECT * FROM trials ORDER BY number").fetchall()
        names = [d[0] for d in database.execute("SELECT * FROM trials LIMIT 1").description]
        at, number = names.index("trial_id"), names.index("number")
        highest = max(row[at] for row in trials)
        rows_of = {
            table: {
                row[at]: database.execute(
                    f"SELECT * FROM {table} WHERE trial_id = ?", (row[at],)
                ).fetchall()
                for row in trials
            }
            for table in TABLES
        }
        columns = {
            table: [d[0] for d in database.execute(f"SELECT * FROM {table} LIMIT 1").description]
            for table in TABLES
        }
        for n in range(len(trials), size):
            original = trials[n % len(trials)]
            copied = list(original)
            copied[at], copied[number] = highest + 1 + n - len(trials), n
            _insert(database, "trials", names, copied)
            shift = drawn.uniform(-0.3, 0.0)
            for table, key in TABLES.items():
                for row in rows_of[table][original[at]]:
                    values = dict(zip(columns[table], row, strict=True)) | {"trial_id": copied[at]}
                    del values[key]
                    _vary(values, shift)
                    _insert(database, table, list(values), list(values.values()))
        database.commit()


def _vary(values: dict[str, Any], shift: float) -> None:
    if values.get("param_name") == RATE:
        values["param_value"] *= 10**shift
    elif "objective" in values:
        values["value"] += shift
    elif values.get("key") == "params":
        params = json.loads(values["value_json"])
        values["value_json"] = json.dumps(params | {RATE: params[RATE] * 10**shift})
    elif values.get("key") == "value":
        values["value_json"] = json.dumps(json.loads(values["value_json"]) + shift)
    elif values.get("key") == "value_interval":
        low, high = json.loads(values["value_json"])
        values["value_json"] = json.dumps([low + shift, high + shift])


def _insert(
    database: sqlite3.Connection, table: str, names: Sequence[str], row: Sequence[Any]
) -> None:
    marks = ", ".join("?" * len(names))
    database.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", row)


def verb_seconds(run_dir: Path, verb: Sequence[str]) -> list[float]:
    """Seconds of a verb by the clock and of CPU, the best of three processes."""
    name, *options = verb
    operands = [options.pop(0)] if name == "show" else []
    command = [sys.executable, "-m", "tuning.cli", name, str(run_dir), *operands, *options]
    found = []
    for _ in range(3):
        before = os.times()
        clock = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        found.append([time.perf_counter() - clock, cpu])
    return min(found)


def fsync_seconds(folder: Path, count: int = 30) -> float:
    """Seconds that appending a line and waiting for the disk takes."""
    with (folder / "synced").open("wb") as file:
        began = time.perf_counter()
        for _ in range(count):
            file.write(b"x" * 300)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / count


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {n: version(n) for n in ("optuna", "sqlalchemy")}
        | {"sqlite": sqlite3.sqlite_version},
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables of a result file."""
    on = found["machine"]
    lines = [
        "# Driver: cost of a trial, and of verbs that read the ledger",
        "",
        f"{on['date']}, `benchmarks/driver.py`, seed {found['seed']}. {on['cpu']}, {on['cores']} cores, load "
        f"{on['load']} when it began; Optuna {on['versions']['optuna']}, SQLite {on['versions']['sqlite']}. One "
        f"`fsync` takes {1e3 * found['fsync_s']:.1f} ms on this disk.",
        "",
        f"Milliseconds a trial of {PROBES} probes, CPU (clock, with waiting for the disk); mean of {found['driven']} "
        "trials on top of as many as the first column says.",
        "",
        "| trials | sampler | ask | reports | tell | trial | opening the ledger, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["trials"]:
        cells = [
            f"{1e3 * row[part][1]:.0f} ({1e3 * row[part][0]:.0f})"
            for part in ("ask", "reports", "tell", "trial")
        ]
        cells = [str(row["trials"]), row["sampler"], *cells]
        cells.append(f"{row['open'][1]:.1f} ({row['open'][0]:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Seconds of a verb, CPU (clock), whole process:", ""]
    sizes = sorted({row["trials"] for row in found["verbs"]})
    lines += [
        "| verb | " + " | ".join(f"{size} trials" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for verb in dict.fromkeys(row["verb"] for row in found["verbs"]):
        of_verb = {row["trials"]: row["seconds"] for row in found["verbs"] if row["verb"] == verb}
        cells = [f"{of_verb[size][1]:.2f} ({of_verb[size][0]:.2f})" for size in sizes]
        lines.append(f"| `{verb}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--samplers", nargs="*", default=["none", "random", "tpe"])
    parser.add_argument("--listed", type=int, nargs="*", default=[10, 1000, 10000])
    parser.add_argument("--driven", type=int, default=10, help="trials that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write, without .json and .md")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "seed": options.seed, "driven": options.driven}
    found |= {"trials": [], "verbs": []}
    with tempfile.TemporaryDirectory() as temporary:
        found["fsync_s"] = fsync_seconds(Path(temporary))
        for sampler in options.samplers:
            spec = sweep(sampler, seed=options.seed)
            run_dir = Path(temporary) / sampler
            run_dir.mkdir()
            drive(spec, run_dir, options.driven)
            for size in sorted(options.trials):
                grow(run_dir, size, seed=options.seed)
                if sampler == "none":
                    enqueue(run_dir, options.driven, seed=size)
                row = {"trials": size, "sampler": sampler} | drive(spec, run_dir, options.driven)
                found["trials"].append(row)
                print(json.dumps(row), file=sys.stderr)
        spec = sweep("tpe", seed=options.seed)
        run_dir = Path(temporary) / "listed"
        run_dir.mkdir()
        commit_yaml(run_dir / SPEC_FILE, {"sweep": spec.plain()})
        drive(spec, run_dir, options.driven)
        for size in sorted(options.listed):
            grow(run_dir, size, seed=options.seed)
            for verb in VERBS:
                row = {
                    "trials": size,
                    "verb": " ".join(verb),
                    "seconds": verb_seconds(run_dir, verb),
                }
                found["verbs"].append(row)
                print(json.dumps(row), file=sys.stderr)
    print(markdown(found))
    if options.out is not None:
        options.out.with_suffix(".json").write_text(
            json.dumps(found, indent=1) + "\n", encoding="utf-8"
        )
        options.out.with_suffix(".md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
