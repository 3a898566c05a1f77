"""How many GPUs one driver keeps busy: 10,000 trials on 1,000 GPUs, with a simulated clock.

Trials are driven without Ray and without a model, as ``benchmarks/driver.py`` does: the real dispatcher and ledger on
the disk, and probes that are a formula. The clock is simulated: a trial takes minutes of it, and each question to the
driver takes the CPU time that the real answer took, one after another, because the driver is one process. A GPU that
waits for an answer is idle.

At some sizes of the study a window of trials is driven so, on the real ledger, grown to that size by copies. Between
the sizes the cost of an answer is interpolated, and with these costs the whole sweep is played through for other
numbers of GPUs and other lengths of a trial. What is not in it: Ray's own work for each result, and waiting for the
disk, which is counted in synced writes instead.

    PYTHONPATH=. python benchmarks/scale.py --out benchmarks/results/scale

It writes ``scale.json`` and ``scale.md``.
"""

import argparse
import heapq
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sqlalchemy
from driver import PROBES, fsync_seconds, grow, machine, probes, sweep

from tuning.dispatcher import Dispatcher
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.records import LEDGER_FILE

MINUTES = (1.0, 10.0, 60.0)
GPUS = (10, 100, 1_000)
TRIALS = 10_000


class Driver(Protocol):
    """Answers questions, and says how many seconds each took."""

    def ask(self) -> tuple[float, int | None]:
        """Seconds, and the number of the next trial; ``None`` where there is none."""

    def report(self, number: int) -> float:
        """Seconds that a probe of a trial takes."""

    def tell(self, number: int) -> float:
        """Seconds that the end of a trial takes."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the driver needs for one trial at a size of the study.

    Attributes:
        trials: Size of the study.
        ask: CPU seconds to propose a trial and to begin it.
        report: CPU seconds for one probe.
        tell: CPU seconds to conclude it.
        open: CPU seconds to open the ledger of this size.
        commits: Transactions of the ledger.
        syncs: Files synced beside it.
        ledger_bytes: Size of the ledger.
        trial_bytes: What a trial of the window added to the run folder, the ledger apart.
    """

    trials: int
    ask: float
    report: float
    tell: float
    open: float
    commits: float
    syncs: float
    ledger_bytes: int
    trial_bytes: float


class Real:
    """The real dispatcher on the real ledger; keeps what each kind of answer took."""

    def __init__(self, dispatcher: Dispatcher, count: int) -> None:
        """Hand out ``count`` trials."""
        self._dispatcher, self._left = dispatcher, count
        self._workers: dict[int, Iterator[Any]] = {}
        self.seconds: dict[str, list[float]] = {"ask": [], "report": [], "tell": []}

    def ask(self) -> tuple[float, int | None]:
        """The dispatcher's next trial."""
        if not self._left:
            return 0.0, None
        self._left -= 1
        began = time.process_time()
        assignment = self._dispatcher.next()
        taken = self._noted("ask", began)
        assert assignment is not None
        self._workers[assignment.number] = probes(assignment)
        return taken, assignment.number

    def report(self, number: int) -> float:
        """One more probe of the trial is taken."""
        probe = next(self._workers[number])
        began = time.process_time()
        self._dispatcher.take(number, probe)
        return self._noted("report", began)

    def tell(self, number: int) -> float:
        """The trial is concluded."""
        began = time.process_time()
        self._dispatcher.finish(number)
        return self._noted("tell", began)

    def _noted(self, name: str, began: float) -> float:
        self.seconds[name].append(time.process_time() - began)
        return self.seconds[name][-1]


class Interpolated:
    """Answers that take what they took at the sizes measured, and in between what lies between."""

    def __init__(self, costs: Sequence[Cost], count: int) -> None:
        """Hand out ``count`` trials, from an empty study on."""
        sizes = np.arange(count)
        known = [cost.trials for cost in costs]
        self._ask = np.interp(sizes, known, [cost.ask for cost in costs])
        self._report = np.interp(sizes, known, [cost.report for cost in costs])
        self._tell = np.interp(sizes, known, [cost.tell for cost in costs])
        self._next = 0

    def ask(self) -> tuple[float, int | None]:
        """The next number."""
        if self._next == len(self._ask):
            return 0.0, None
        self._next += 1
        return float(self._ask[self._next - 1]), self._next - 1

    def report(self, number: int) -> float:
        """By the size of the study when the trial was asked for."""
        return float(self._report[number])

    def tell(self, number: int) -> float:
        """The same."""
        return float(self._tell[number])


@dataclass(frozen=True, kw_only=True)
class Played:
    """A sweep by the simulated clock.

    Attributes:
        gpus: GPUs, with one trial each at a time.
        minutes: What a trial takes on one, without waiting.
        hours: Until the last trial ended.
        busy: Share of the time of a GPU, up to its last trial, in which it computed.
        driver_busy: Share of the time in which the driver computed.
    """

    gpus: int
    minutes: float
    hours: float
    busy: float
    driver_busy: float


def play(driver: Driver, *, gpus: int, minutes: float) -> Played:
    """Let GPUs ask, compute and report until there is no trial left."""
    between = 60.0 * minutes / PROBES
    waiting: list[tuple[float, int, int, int]] = [(0.0, gpu, -1, 0) for gpu in range(gpus)]
    answered, computed, worked, ended = 0.0, 0.0, 0.0, dict.fromkeys(range(gpus), 0.0)
    while waiting:
        moment, gpu, number, made = heapq.heappop(waiting)
        begun = max(moment, answered)
        if number < 0:
            taken, given = driver.ask()
            if given is None:
                continue
            number = given
        else:
            taken = driver.report(number)
            computed += between
            if made == PROBES:
                taken += driver.tell(number)
                number = -1
        answered, worked = begun + taken, worked + taken
        ended[gpu] = answered
        if number < 0:
            heapq.heappush(waiting, (answered, gpu, -1, 0))
        else:
            heapq.heappush(waiting, (answered + between, gpu, number, made + 1))
    return Played(
        gpus=gpus,
        minutes=minutes,
        hours=max(ended.values()) / 3600.0,
        busy=computed / sum(ended.values()),
        driver_busy=worked / max(ended.values()),
    )


class Writes:
    """Counts what waits for the disk within its context."""

    def __enter__(self) -> "Writes":
        self.commits = self.syncs = 0
        self._fsync = os.fsync
        os.fsync = self._synced  # type: ignore[assignment]
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", self._committed)
        return self

    def __exit__(self, *raised: object) -> None:
        os.fsync = self._fsync
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", self._committed)

    def _synced(self, descriptor: int) -> None:
        self.syncs += 1
        self._fsync(descriptor)

    def _committed(self, connection: object) -> None:
        self.commits += 1


def measured(run_dir: Path, sampler: str, *, size: int, window: int, seed: int) -> Cost:
    """Drive a window of trials at a size of the study; what an answer takes there."""
    spec = sweep(sampler, seed=seed)
    is_new = not (run_dir / LEDGER_FILE).exists()
    if not is_new:
        grow(run_dir, size, seed=seed)
    began = time.process_time()
    ledger = Ledger(run_dir, spec, create=is_new)
    opened = time.process_time() - began
    log = EventLog(run_dir / "events.jsonl", Silent())
    dispatcher = Dispatcher(spec, run_dir, ledger, log, target=10**6, concurrent=10**6)
    before = _bytes_beside(run_dir)
    driver = Real(dispatcher, window)
    with Writes() as writes:
        play(driver, gpus=max(1, window // 3), minutes=10.0)
    mean = {name: float(np.mean(values)) for name, values in driver.seconds.items()}
    return Cost(
        trials=size,
        open=opened,
        commits=writes.commits / window,
        syncs=writes.syncs / window,
        ledger_bytes=(run_dir / LEDGER_FILE).stat().st_size,
        trial_bytes=(_bytes_beside(run_dir) - before) / window,
        **mean,
    )


def _bytes_beside(run_dir: Path) -> int:
    files = (p for p in run_dir.rglob("*") if p.is_file() and not p.name.startswith(LEDGER_FILE))
    return sum(p.stat().st_size for p in files)


def most_gpus(costs: Sequence[Cost], minutes: float) -> int:
    """GPUs that the driver could serve if it did nothing else, at the largest size measured."""
    last = costs[-1]
    return int(60.0 * minutes / (last.ask + PROBES * last.report + last.tell))


def markdown(found: dict[str, Any]) -> str:
    """The tables of a result file."""
    on, costs = found["machine"], [Cost(**cost) for cost in found["costs"]]
    lines = [
        "# Scale: how many GPUs one driver keeps busy",
        "",
        f"{on['date']}, `benchmarks/scale.py`, seed {found['seed']}, sampler {found['sampler']}. {on['cpu']}, "
        f"{on['cores']} cores, load {on['load']} when it began; Optuna {on['versions']['optuna']}, SQLite "
        f"{on['versions']['sqlite']}. One `fsync` takes {1e3 * found['fsync_s']:.1f} ms on this disk.",
        "",
        f"CPU milliseconds of the driver, mean of {found['window']} trials of {PROBES} probes at each size:",
        "",
        "| trials | ask | a probe | tell | a trial | opening, s | transactions a trial | synced files a trial "
        "| ledger, MB | beside it, kB a trial |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in costs:
        whole = c.ask + PROBES * c.report + c.tell
        milliseconds = " | ".join(f"{1e3 * s:.0f}" for s in (c.ask, c.report, c.tell, whole))
        lines.append(
            f"| {c.trials} | {milliseconds} | {c.open:.1f} | {c.commits:.1f} | {c.syncs:.1f} | "
            f"{c.ledger_bytes / 1e6:.1f} | {c.trial_bytes / 1e3:.1f} |"
        )
    lines += [
        "",
        f"A sweep of {found['played_trials']} trials by the simulated clock:",
        "",
        "| GPUs | minutes a trial | hours | GPUs busy | driver busy |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {p['gpus']} | {p['minutes']:g} | {p['hours']:.1f} | {p['busy']:.1%} | {p['driver_busy']:.1%} |"
            for p in found["played"]
        ),
        "",
        "GPUs that the driver's CPU could serve at the largest size: "
        + ", ".join(f"{most_gpus(costs, m)} at {m:g} minutes a trial" for m in MINUTES)
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[0, 1_000, 2_000, 5_000, 10_000])
    parser.add_argument("--window", type=int, default=30, help="trials driven at each size")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write, without .json and .md")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "seed": options.seed, "sampler": options.sampler}
    found |= {"window": options.window, "played_trials": TRIALS}
    with tempfile.TemporaryDirectory() as temporary:
        found["fsync_s"] = fsync_seconds(Path(temporary))
        run_dir = Path(temporary) / "run"
        run_dir.mkdir()
        costs = []
        for size in sorted(options.sizes):
            costs.append(
                measured(
                    run_dir, options.sampler, size=size, window=options.window, seed=options.seed
                )
            )
            print(json.dumps(asdict(costs[-1])), file=sys.stderr)
    found["costs"] = [asdict(cost) for cost in costs]
    found["played"] = [
        asdict(play(Interpolated(costs, TRIALS), gpus=gpus, minutes=minutes))
        for gpus in GPUS
        for minutes in MINUTES
    ]
    text = markdown(found)
    if options.out is not None:
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
