"""Regret of samplers on real unlearning trials, replayed through surrogates.

    python benchmarks/search.py TRIALS --out benchmarks/results/search

``TRIALS`` is a folder with the logged trials that :mod:`search_problems` names. Each sampler makes sweeps of 30
trials over each problem. A proposal is that of :func:`tuning.proposals.next_proposal` and a trial is judged by
:func:`tuning.objective.conclude`, so that what is measured is what a sweep does; ``--ledger`` checks on a few that
the ledger's own proposals are the same.

The regret after n trials is the share of what can be gained over doing nothing that the best feasible of these
trials leaves, by the surrogate without noise: 0 is the optimum, 1 is nothing gained. Samplers are told values with
noise as large as the data's. All samplers see the same problems under the same seeds. Intervals are the middle
95 % of 2,000 bootstrap samples of sources (a method on a model; both its surrogates go together) and, within
each, of runs.
"""

import argparse
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from search_candidates import Candidate, candidates
from search_problems import Problem, problems
from search_surrogates import Array

from core.config import SelectionConfig
from core.measuring.selection import Probe, guard_verdict, running_score
from tuning.config import SweepSpec
from tuning.ledger import Ledger
from tuning.objective import Outcome, conclude
from tuning.proposals import Proposed, next_proposal, starting_points

AFTER = (10, 20, 30)
REFERENCE = "tpe, Optuna's defaults"
DEFAULT = "auto, 5 startup"
_BOOTSTRAPS = 2_000


def judged(problem: Problem, probes: Sequence[Probe], spec: SweepSpec) -> Outcome:
    """How a sweep would judge a trial with these probes."""
    selection, guard = spec.trial_selection(), spec.pruning.retain
    for n in range(1, len(probes) + 1):
        series = [p.metrics for p in probes[:n]]
        verdict = guard_verdict(series, guard) if guard else None
        if verdict is not None:
            return conclude(probes[:n], selection, verdict)
    return conclude(probes, selection, None)


def finished(
    proposed: Proposed,
    outcome: Outcome,
    probes: Sequence[Probe],
    selection: SelectionConfig,
    told: bool,
) -> FrozenTrial:
    """The trial as the ledger has it when it is told."""
    made = proposed.born()
    seen = [p for p in probes if p.step <= outcome.steps]
    scores = {p.step: running_score(seen[:n], selection) for n, p in enumerate(seen, start=1)}
    pruned = outcome.state == "PRUNED"
    return create_trial(
        state=TrialState[outcome.state],
        value=scores[seen[-1].step] if pruned else outcome.value,
        params=made.params,
        distributions=made.distributions,
        system_attrs=made.system_attrs,
        user_attrs=made.user_attrs | {"metrics": dict(outcome.metrics)},
        intermediate_values=scores,
        constraints=dict(outcome.violations) if told else None,
    )


def replay(
    problem: Problem, candidate: Candidate, *, seed: int, trials: int, at_once: int = 1
) -> list[float]:
    """True values of the trials of a sweep, in the order in which they end.

    Args:
        problem: What is searched.
        candidate: Who searches.
        seed: Of the sampler and of the noise.
        trials: How many.
        at_once: Trials that run at the same time; the oldest ends first.
    """
    spec = problem.sweep(dict(candidate.settings) | {"seed": seed}, started=candidate.started)
    selection = spec.trial_selection()
    study: list[FrozenTrial] = starting_points(spec)
    running: list[Proposed] = []
    found: list[float] = []
    with candidate.in_place():
        while len(found) < trials:
            begun = len(found) + len(running)
            if len(running) < at_once and begun < trials:
                proposed = next_proposal(spec, study)
                born = proposed.born()
                if proposed.number == len(study):
                    study.append(born)
                else:
                    study[proposed.number] = born
                running.append(proposed)
                continue
            ended = running.pop(0)
            rng = np.random.default_rng([seed, ended.number])
            probes = problem.probes(ended.params, rng)
            outcome = judged(problem, probes, spec)
            study[ended.number] = finished(ended, outcome, probes, selection, candidate.told)
            found.append(problem.value(ended.params))
    return found


def ledger_agrees(problem: Problem, candidate: Candidate, *, seed: int, trials: int) -> bool:
    """Whether a ledger on disk makes the same proposals."""
    spec = problem.sweep(dict(candidate.settings) | {"seed": seed}, started=candidate.started)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder), spec, create=True)
        values = []
        for _ in range(trials):
            number, params = ledger.ask()
            attempt = ledger.begin_attempt(number)
            probes = problem.probes(params, np.random.default_rng([seed, number]))
            verdict = None
            for n in range(1, len(probes) + 1):
                verdict = ledger.report(number, attempt, probes[:n])
                if verdict is not None:
                    probes = probes[:n]
                    break
            outcome = conclude(probes, spec.trial_selection(), verdict)
            ledger.finish(number, outcome, adapter=None, duration_s=0.0)
            values.append(problem.value(params))
    return values == replay(problem, candidate, seed=seed, trials=trials)


Run = Mapping[str, Any]
"""A replayed sweep: sampler, problem, surrogate, group, seed, and the true values of its trials."""


def replay_all(
    found: Sequence[Problem], options: argparse.Namespace, asked: Sequence[Candidate]
) -> list[Run]:
    """Every sampler on every problem; what ``options.runs`` holds is not made again."""
    runs: list[Run] = []
    if options.runs.exists():
        runs = [json.loads(line) for line in options.runs.read_text("utf-8").splitlines()]
    done = {(r["sampler"], r["problem"], r["surrogate"], r["seed"]) for r in runs}
    with options.runs.open("a", encoding="utf-8") as out:
        for candidate in asked:
            began = time.process_time()
            n_seeds = options.slow_seeds if candidate.is_slow else options.seeds
            for problem, seed in itertools.product(found, range(n_seeds)):
                if (candidate.name, problem.name, problem.kind, seed) in done:
                    continue
                if problem.is_conditional and candidate.settings["name"] == "grid":
                    continue
                values = replay(
                    problem, candidate, seed=seed, trials=AFTER[-1], at_once=options.at_once
                )
                run = {
                    "sampler": candidate.name,
                    "problem": problem.name,
                    "surrogate": problem.kind,
                    "group": problem.group,
                    "seed": seed,
                    "best": problem.best,
                    "values": [round(v, 5) for v in values],
                }
                runs.append(run)
                out.write(json.dumps(run) + "\n")
            out.flush()
            print(f"{candidate.name}: {time.process_time() - began:.0f} s", file=sys.stderr)
    return runs


def complete(runs: Sequence[Run], found: Sequence[Problem]) -> list[Run]:
    """Those of samplers that were replayed on every problem that they take; others cannot be compared."""
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for run in runs:
        places[run["sampler"]].add((run["problem"], run["surrogate"]))
    plain = {(p.name, p.kind) for p in found if not p.is_conditional}
    whole = {n for n, of in places.items() if of in (plain, {(p.name, p.kind) for p in found})}
    return [run for run in runs if run["sampler"] in whole]


class Regrets:
    """Regrets of replayed sweeps, by sampler, group and source."""

    def __init__(self, runs: Sequence[Run]) -> None:
        best: dict[tuple[str, str], float] = defaultdict(float)
        for run in runs:
            place = run["problem"], run["surrogate"]
            best[place] = max(best[place], run["best"], *run["values"])
        self.found: dict[str, dict[str, dict[str, dict[tuple[str, int], Array]]]] = {}
        for run in runs:
            reached = np.maximum.accumulate(run["values"])[np.array(AFTER) - 1]
            left = 1.0 - reached / best[run["problem"], run["surrogate"]]
            group = self.found.setdefault(run["sampler"], {}).setdefault(run["group"], {})
            group.setdefault(run["problem"], {})[run["surrogate"], run["seed"]] = left

    def of(
        self, sampler: str, *, than: str | None = None, surrogate: str | None = None
    ) -> dict[str, list[Array]]:
        """For each group the ``(runs, 3)`` regrets of its sources; the difference to another sampler's with ``than``.

        Differences are over the runs that both have.
        """
        made: dict[str, list[Array]] = {}
        for group, sources in self.found[sampler].items():
            for name, runs in sources.items():
                other = self.found[than][group].get(name, {}) if than else runs
                kept = [
                    k for k in runs if k in other and surrogate in (None, k[0], *_CONTROL & {k[0]})
                ]
                rows = [runs[k] - (other[k] if than else 0.0) for k in kept]
                if rows:
                    made.setdefault(group, []).append(np.array(rows))
        return made


_CONTROL = frozenset({"analytic"})
_PARTS = 3
"""Parts that the mean over all counts, each alike; a sampler that does not take one of them has no such mean."""


def bootstrapped(sources: Sequence[Array], rng: np.random.Generator) -> Array:
    """Means over sources, ``(samples, 3)``: of the sources drawn with replacement, of each its runs drawn so."""
    drawn = np.stack(
        [
            rows[rng.integers(0, len(rows), (_BOOTSTRAPS, len(rows)))].mean(axis=1)
            for rows in sources
        ],
        axis=1,
    )
    if len(sources) == 1:
        return drawn[:, 0]
    taken = rng.integers(0, len(sources), (_BOOTSTRAPS, len(sources)))
    found: Array = np.take_along_axis(drawn, taken[:, :, None], axis=1).mean(axis=1)
    return found


def summary(groups: Mapping[str, Sequence[Array]]) -> dict[str, dict[str, list[list[float]]]]:
    """Mean and 95 % interval after each number of trials: of each group, and of the mean of all but the control."""
    rng = np.random.default_rng(0)
    means = {g: np.mean([rows.mean(axis=0) for rows in s], axis=0) for g, s in groups.items()}
    samples = {g: bootstrapped(s, rng) for g, s in groups.items()}
    counted = [g for g in means if g not in _CONTROL]
    if len(counted) == _PARTS:
        means["all"] = np.mean([means[g] for g in counted], axis=0)
        samples["all"] = np.mean([samples[g] for g in counted], axis=0)
    return {
        g: {
            "mean": means[g].round(4).tolist(),
            "low": np.percentile(samples[g], 2.5, axis=0).round(4).tolist(),
            "high": np.percentile(samples[g], 97.5, axis=0).round(4).tolist(),
        }
        for g in means
    }


def rows_of(regrets: Regrets, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the tables show of each sampler, best after 20 trials first."""
    rows = []
    for name in (n for n in names if n in regrets.found):
        kinds = {k: summary(regrets.of(name, surrogate=k)).get("all") for k in ("gp", "forest")}
        others = [o for o in (REFERENCE, DEFAULT) if o in regrets.found and o != name]
        rows.append(
            {
                "sampler": name,
                "sweeps": sum(
                    len(runs) for of in regrets.found[name].values() for runs in of.values()
                ),
                "regret": summary(regrets.of(name)),
                "by_surrogate": kinds,
                "against": {o: summary(regrets.of(name, than=o)).get("all") for o in others},
            }
        )
    return sorted(rows, key=lambda row: _middle(row["regret"].get("all")))


def _middle(of: Mapping[str, Sequence[float]] | None) -> float:
    """The mean after 20 trials."""
    return math.inf if of is None else of["mean"][1]


def _cell(of: Mapping[str, Sequence[float]] | None, place: int, *, signed: bool = False) -> str:
    if of is None:
        return "–"
    mean, low, high = (of[k][place] for k in ("mean", "low", "high"))
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: regrets by number of trials; their parts, and differences, after 20."""
    after = AFTER[1]
    lines = [
        _line(
            [
                "sampler",
                "sweeps",
                *(f"after {n}" for n in AFTER),
                f"against {REFERENCE}, after {after}",
            ]
        )
    ]
    lines.append("|---" + "|---:" * (len(AFTER) + 2) + "|")
    for row in rows:
        cells = [_cell(row["regret"].get("all"), n) for n in range(len(AFTER))]
        against = _cell(row["against"].get(REFERENCE), 1, signed=True)
        lines.append(_line([row["sampler"], str(row["sweeps"]), *cells, against]))
    groups = [g for g in rows[0]["regret"] if g != "all"]
    lines += ["", f"The parts, and both kinds of surrogate, after {after} trials:", ""]
    shown = ["sampler", *groups, "Gaussian process", "forest", f"against {DEFAULT}"]
    lines += [_line(shown), "|---" + "|---:" * (len(groups) + 3) + "|"]
    for row in rows:
        parts = [row["regret"].get(g) for g in groups] + list(row["by_surrogate"].values())
        cells = ["–" if part is None else f"{_middle(part):.3f}" for part in parts]
        against = _cell(row["against"].get(DEFAULT), 1, signed=True)
        lines.append(_line([row["sampler"], *cells, against]))
    return lines


def described(found: Sequence[Problem]) -> list[str]:
    """Markdown: of each part its problems and how well their surrogates predict held-out trials."""
    lines = [
        _line(
            ["part", "surrogate", "problems", "held-out R²", "held-out rank correlation", "noise"]
        ),
        "|---|---|---:|---:|---:|---:|",
    ]
    for group, kind in dict.fromkeys((p.group, p.kind) for p in found):
        of = [p for p in found if (p.group, p.kind) == (group, kind)]
        qualities = [q for p in of for q in p.qualities]
        r2, rank = (
            f"{np.median([getattr(q, k) for q in qualities]):.2f}" if qualities else "–"
            for k in ("r2", "spearman")
        )
        noise = f"{np.median([p.noise[0] for p in of]):.3f}"
        lines.append(_line([group, kind, str(len(of)), r2, rank, noise]))
    return [
        *lines,
        "",
        "Qualities and noise are medians; noise is that of a told closure, a standard deviation.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", type=Path, help="folder of the logged trials")
    parser.add_argument("--out", type=Path, required=True, help="JSON and Markdown, without suffix")
    parser.add_argument("--runs", type=Path, help="replayed sweeps, kept: only new ones are made")
    parser.add_argument("--only", nargs="*", help="names of samplers")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--slow-seeds", type=int, default=1, help="of samplers with a slow model")
    parser.add_argument("--every", type=int, default=9, help="take each n-th budgeted search")
    parser.add_argument("--at-once", type=int, default=1, help="trials that run at the same time")
    parser.add_argument("--ledger", action="store_true", help="check proposals against a ledger")
    options = parser.parse_args()
    options.runs = options.runs or options.out.with_suffix(".runs.jsonl")
    warnings.simplefilter("ignore")
    found = list(problems(options.trials, every=options.every))
    asked = [c for c in candidates() if not options.only or c.name in options.only]
    if options.ledger:
        checked = [(p, c) for p in found[::20] for c in asked if c.is_shipped]
        bad = [(p.name, c.name) for p, c in checked if not ledger_agrees(p, c, seed=7, trials=14)]
        print(f"ledger: {len(checked) - len(bad)} of {len(checked)} sweeps alike {bad}")
        return
    runs = complete(replay_all(found, options, asked), found)
    rows = rows_of(Regrets(runs), [c.name for c in candidates()])
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, optuna {optuna.__version__}, numpy {np.__version__}",
        "seeds": "from 0 on, as many as the sweeps of a sampler need",
        "trials at once": options.at_once,
        "sweeps": len(runs),
    }
    lines = ["# Regret of samplers on surrogates of real unlearning trials", ""]
    lines += [f"`benchmarks/search.py`, {'; '.join(f'{k}: {v}' for k, v in facts.items())}.", ""]
    lines += [*described(found), "", *tables(rows), ""]
    options.out.with_suffix(".json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
