"""Rows that probes read, and decisions that go wrong for it: recorded trials, measured again in four ways.

``record`` runs trials of a sweep file, drawn at random from its space, to the end of their budget, with every row
at every probe; nothing stops them. A trial's folder then holds the row sums of every probe.

    python benchmarks/probes.py record search_spaces/demo.yaml FOLDER --trials 10

``replay`` goes through the recorded trials with the rules of their sweep, once for each way of measuring:

* ``16 rows``: 16 rows of retain and of general set at every probe, and all forget rows;
* ``all``: every row at every probe, which is what the others are compared with;
* ``adaptive``: ``rows_per_probe: adaptive``;
* ``adaptive, skipping``: that and ``skip_probes: true``, what ``auto`` is on a CPU.

Which rows come first is drawn anew in each of some orders. What is counted:

* *tokens*: counted tokens of the rows read until the trial ended, as a share of those of ``all``;
* *wrong guard decisions*: probes measured that are said to break the guard's limit and do not, or the other way;
* *wrong outcomes*: trials that end at another step, for another reason, or with another best probe.

    python benchmarks/probes.py replay FOLDER --orders 50

No trial lands, and none is without effect: neither is replayed.

``--limit`` replays with another limit of all drops (and a hard limit of five times as much): the closer limits lie
to what trials do, the harder decisions are.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core.config import SelectionConfig, TrialConfig, parse_trial
from core.measuring.extent import Extent
from core.measuring.history import History
from core.measuring.probing import Measurement
from core.measuring.reporting import decide
from core.measuring.selection import Probe, best_probe, drop_at_target
from core.measuring.staged import Place, Reading, bounds
from core.metrics.intervals import Sums
from core.metrics.probes import MEASURED, degradation, level
from core.store.durable import commit_yaml, read_lines
from core.training.warm import Warm
from core.worker import probes
from tuning.files import load_sweep
from tuning.ledger import Ledger
from tuning.space import bind

FEW = 16
WAYS: Mapping[str, Extent] = {
    f"{FEW} rows": Extent(adaptive=False, skips=False),
    "all": Extent(adaptive=False, skips=False),
    "adaptive": Extent(adaptive=True, skips=False),
    "adaptive, skipping": Extent(adaptive=True, skips=True),
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A recorded trial: its rules, and the row sums of the untouched model and of each probe."""

    selection: SelectionConfig
    before: Mapping[str, Sums]
    by_step: Mapping[int, Mapping[str, Sums]]

    def with_rows(self, places: Mapping[str, Sequence[int]]) -> "Recorded":
        """The same with some rows of its sets only."""
        return Recorded(
            selection=self.selection,
            before=dict(self.before) | {n: self.before[n][at] for n, at in places.items()},
            by_step={
                step: dict(sums) | {n: sums[n][at] for n, at in places.items()}
                for step, sums in self.by_step.items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """How a trial went: its probes, the tokens that they read, and how it ended."""

    probes: Sequence[Probe]
    tokens: float
    outcome: tuple[int, str, int | None]


def record(options: argparse.Namespace) -> None:
    """Run trials, each to its end, with the row sums of every probe in its history."""
    spec = load_sweep(options.sweep, overrides={"sampler.name": "random"})
    options.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(options.folder, spec, create=not (options.folder / "ledger.db").exists())
    warm = Warm()
    for _ in range(options.trials):
        number, params = ledger.ask()
        trial = bind(spec, params, where=f"trial {number}")
        folder = options.folder / f"{number:04d}"
        commit_yaml(folder / "trial.yaml", trial.model_dump(mode="json"))
        for probe in probes(_unstopped(trial), folder=folder, warm=warm):
            closure = probe.metrics["forget_closure"]
            print(f"trial {number} step {probe.step}: forget_closure {closure:.3f}", flush=True)


def _unstopped(trial: TrialConfig) -> TrialConfig:
    """The trial with nothing that stops it; every probe counts so far, so that its rows are recorded."""
    rules = {"constraints": (), "past_target": None, "retain_guard": None, "select": "last"}
    extent = {"rows_per_probe": "all", "skip_probes": False}
    beside = {"landing": False, "no_effect": None}
    selection = trial.selection.model_copy(update=rules | extent | beside)
    return trial.model_copy(update={"selection": selection})


def recorded(folder: Path, *, limit: float | None) -> Recorded:
    """A trial of ``record``."""
    values = yaml.safe_load((folder / "trial.yaml").read_text(encoding="utf-8"))
    selection = parse_trial(values, where=str(folder)).selection
    if limit is not None:
        selection = _limited(selection, limit)
    first, *lines = [line for line in read_lines(folder / "history.jsonl") if "rows" in line]
    tokens = {name: of["tokens"] for name, of in first["rows"].items()}

    def sums(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Sums]:
        rows = line["rows"]
        found = {n: (rows[n]["nll"], rows[n]["correct"], tokens[n]) for n in names}
        return {n: np.array(columns, dtype=np.float64).T for n, columns in found.items()}

    return Recorded(
        selection=selection,
        before=sums(first, [*MEASURED, "target", "unseen"]),
        by_step={line["step"]: sums(line, MEASURED) for line in lines},
    )


def _limited(selection: SelectionConfig, limit: float) -> SelectionConfig:
    plain = selection.model_dump(mode="json")
    for constraint in plain["constraints"]:
        constraint["at_most"] = limit
    if plain["retain_guard"] is not None:
        plain["retain_guard"] |= {"limit": limit, "hard_limit": 5 * limit}
    return SelectionConfig.model_validate(plain)


def replay(trial: Recorded, extent: Extent, *, orders: Mapping[str, Sequence[int]]) -> Replayed:
    """Go through a recorded trial as the worker does, by the rules of its sweep."""
    selection, baseline = trial.selection, {n: level(s) for n, s in trial.before.items()}
    history = History(selection, trial.before, None, extent=extent, started=0.0)
    tokens, seen = 0.0, list[Probe]()
    last_step = selection.max_steps
    for step, sums in trial.by_step.items():
        if step != last_step and history.leaves_out(step):
            continue

        def measure(places: Sequence[Place], sums: Mapping[str, Sums] = sums) -> Sums:
            nonlocal tokens
            found = np.array([sums[name][place] for name, place in places]).reshape(-1, 3)
            tokens += float(found[:, 2].sum())
            return found

        reading = Reading(
            measure=measure,
            orders=orders,
            before=trial.before,
            bounds=bounds(history.values_that_decide(), baseline),
        )

        def measured(reading: Reading = reading) -> Measurement:
            metrics = degradation(reading.levels(baseline), baseline)
            if selection.is_minimized:
                metrics["drop_at_target"] = drop_at_target(metrics, selection)
            return Measurement(metrics=metrics, intervals={}, n_rows={}, sums={})

        if extent.adaptive and step != last_step:
            reading.until_decided()
        if not extent.adaptive or step == last_step or history.decides(step, measured()):
            reading.rest()
        probe = history.judge(step, measured(), is_last=step == last_step)
        seen.append(probe)
        verdict = decide(seen, selection).verdict
        if verdict or probe.stopped_by:
            best = best_probe(seen, selection)
            reason = verdict.stopped_by if verdict else str(probe.stopped_by)
            return Replayed(
                probes=seen, tokens=tokens, outcome=(step, reason, best.step if best else None)
            )
    raise ValueError("the recorded trial has no last probe")


def is_broken(metrics: Mapping[str, float], selection: SelectionConfig) -> bool:
    """Whether a probe breaks the guard's limit."""
    guard = selection.retain_guard
    return guard is not None and any(
        guard.excess(m, metrics[m], guard.limit) > 0.0 for m in guard.metrics
    )


def compared(trials: Sequence[Recorded], *, n_orders: int) -> Iterator[dict[str, Any]]:
    """What each way reads, and how often it decides otherwise than all rows."""
    counts = {name: Counter[str]() for name in WAYS}
    for number, trial in enumerate(trials):
        whole = replay(trial, WAYS["all"], orders=_orders(trial, seed=0))
        truth = _whole_metrics(trial)
        for seed in range(n_orders):
            orders = _orders(trial, seed=1000 * number + seed)
            for name, extent in WAYS.items():
                seen = trial
                if name == f"{FEW} rows":
                    seen = trial.with_rows({n: orders[n][:FEW] for n in ("retain", "general")})
                found = replay(
                    seen, extent, orders=orders if seen is trial else _orders(seen, seed=0)
                )
                counts[name] += Counter(
                    tokens=found.tokens,
                    whole=whole.tokens,
                    probes=len(found.probes),
                    wrong_guard=sum(
                        is_broken(p.metrics, trial.selection)
                        != is_broken(truth[p.step], trial.selection)
                        for p in found.probes
                    ),
                    trials=1,
                    wrong_outcome=found.outcome != whole.outcome,
                )
    for name, count in counts.items():
        yield {
            "way": name,
            "tokens": count["tokens"] / count["whole"],
            "wrong_guard_decisions": count["wrong_guard"] / count["probes"],
            "wrong_outcomes": count["wrong_outcome"] / count["trials"],
            "probes_per_trial": count["probes"] / count["trials"],
        }


def _whole_metrics(trial: Recorded) -> dict[int, dict[str, float]]:
    baseline = {name: level(sums) for name, sums in trial.before.items()}
    return {
        step: degradation({name: level(of) for name, of in sums.items()}, baseline)
        for step, sums in trial.by_step.items()
    }


def _orders(trial: Recorded, *, seed: int) -> dict[str, list[int]]:
    found = {name: list(range(len(trial.before[name]))) for name in MEASURED}
    for places in found.values():
        random.Random(seed).shuffle(places)
    return found


def report(options: argparse.Namespace) -> None:
    """Print a table and, if asked for, write JSON."""
    folders = sorted(path.parent for path in options.folder.glob("*/history.jsonl"))
    trials = [recorded(folder, limit=options.limit) for folder in folders]
    trials = [trial for trial in trials if trial.selection.max_steps in trial.by_step]
    rows = list(compared(trials, n_orders=options.orders))
    print(f"{len(trials)} trials, {options.orders} orders of their rows\n")
    print("| way | tokens | probes a trial | wrong guard decisions | wrong outcomes |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['way']} | {row['tokens']:.2f} | {row['probes_per_trial']:.1f} | "
            f"{row['wrong_guard_decisions']:.2%} | {row['wrong_outcomes']:.2%} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("record")
    verb.add_argument("sweep", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--trials", type=int, default=10)
    verb.set_defaults(run=record)
    verb = verbs.add_parser("replay")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--orders", type=int, default=50)
    verb.add_argument("--limit", type=float)
    verb.add_argument("--json", type=Path)
    verb.set_defaults(run=report)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
