"""What pruners would have saved, and lost, on recorded trials.

    python benchmarks/pruners.py runs/demo --tofu TRIALS/tofu-150-models.json --out benchmarks/results/pruners

The trials of each run folder are gone through again, in random orders, one after the other: at every recorded probe
the pruner decides, through :mod:`tuning.pruning` and :func:`tuning.objective.conclude`, as it would have decided in a
sweep. ``steps saved`` is the share of the recorded steps that are not made; the winner is lost when the best
feasible value of the sweep is not reached, and ``value lost`` is by how much, a mean over all orders. A trial that
ended by a rule of its own or by the guard has no later probes, so a run that was recorded with stops shows only what
a pruner adds to them.

``--tofu`` adds the 150 logged models that ``search_problems.py`` describes: each method a sweep, each
of its settings a trial with two probes, at 5 and at 10 epochs, which were trained apart. ``utility`` must be kept to
0.95 there.
"""

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from core.config import RetainGuardConfig, SelectionConfig
from core.measuring.selection import Probe, best_probe, running_score
from tuning.config import PruningSpec, SweepSpec
from tuning.objective import conclude
from tuning.pruning import ATTEMPT, guard_key, make_pruner
from tuning.run import load_run

UTILITY = 0.95


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A sweep whose trials were recorded.

    Attributes:
        name: Where it comes from.
        group: The table that it belongs to.
        spec: The sweep.
        trials: The probes of each trial.
    """

    name: str
    group: str
    spec: SweepSpec
    trials: Sequence[Sequence[Probe]]

    @property
    def selection(self) -> SelectionConfig:
        """Which probe counts."""
        return self.spec.trial_selection()

    @property
    def best(self) -> float:
        """The best feasible value of all trials."""
        return max(_value(t, self.selection) for t in self.trials)

    @property
    def steps(self) -> int:
        """Steps of all trials."""
        return sum(t[-1].step for t in self.trials)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What became of a sweep: steps made, and by how much its best value is smaller."""

    steps: int
    lost: float


def _value(probes: Sequence[Probe], selection: SelectionConfig) -> float:
    """Best feasible value; 0, that of doing nothing, if there is none better."""
    best = best_probe(probes, selection)
    return 0.0 if best is None else max(0.0, best.metrics[selection.metric])


def replay(recorded: Recorded, pruning: PruningSpec, order: Sequence[int]) -> Replayed:
    """Go through the trials in this order."""
    selection = recorded.selection
    pruner = make_pruner(pruning, max_steps=recorded.spec.budget.max_steps)
    study = optuna.create_study(direction="maximize", study_name="sweep")
    steps, best = 0, 0.0
    for number, place in enumerate(order):
        probes, verdict = recorded.trials[place], None
        trial = study.ask()
        trial.set_user_attr(ATTEMPT, 1)
        for n, probe in enumerate(probes, start=1):
            trial.set_user_attr(guard_key(1, probe.step), dict(probe.metrics))
            trial.report(running_score(probes[:n], selection), probe.step)
            seen = study.get_trials(deepcopy=False)[number]
            verdict = pruner.guarded(seen)
            if verdict is None and n < len(probes):
                verdict = pruner.ranked(study, seen)
            if verdict is not None:
                break
        made = probes[:n]
        outcome = conclude(made, selection, verdict)
        state = optuna.trial.TrialState[outcome.state]
        study.tell(trial, outcome.value if outcome.state == "COMPLETE" else None, state=state)
        steps += made[-1].step
        best = max(best, _value(made, selection))
    return Replayed(steps=steps, lost=recorded.best - best)


def prunings(guard: RetainGuardConfig | None) -> dict[str, PruningSpec]:
    """The pruners of the table; ``guard`` is that of the sweep."""
    found = {"nothing": PruningSpec(retain=None)}
    if guard is not None:
        found["guard, as the sweep has it"] = PruningSpec(retain=guard)
        patient = guard.model_copy(update={"patience": 1, "grace_steps": 0})
        found["guard, at the first violation"] = PruningSpec(retain=patient)
        wide = {"limit": 4 * guard.limit, "hard_limit": max(guard.hard_limit, 8 * guard.limit)}
        found["guard, at the first violation of 4 x the limit"] = PruningSpec(
            retain=patient.model_copy(update=wide)
        )
    for startup in (4, 8):
        found[f"median, {startup} startup trials"] = PruningSpec(
            retain=None, ranking="median", startup_trials=startup
        )
    for ranking in ("successive_halving", "hyperband"):
        for factor in (2, 3, 4):
            found[f"{ranking}, factor {factor}"] = PruningSpec.model_validate(
                {"retain": None, "ranking": ranking, "reduction_factor": factor}
            )
    return found


def from_run(folder: Path) -> Recorded:
    """The finished trials of a run folder, each with the probes of its latest attempt."""
    run = load_run(folder)
    trials = []
    for trial in run.trials:
        lines = [line for line in run.history(trial.number) if line["step"] > 0]
        if trial.state in ("COMPLETE", "PRUNED") and lines:
            trials.append([_probe(line["step"], line["metrics"]) for line in lines])
    return Recorded(name=run.name, group=f"run {run.name}", spec=run.spec, trials=trials)


def _probe(step: int, metrics: Mapping[str, Any]) -> Probe:
    found = {name: float("nan") if v is None else float(v) for name, v in metrics.items()}
    return Probe(step=step, metrics=found, seconds=0.0)


def from_tofu(path: Path) -> Iterator[Recorded]:
    """Each method of the logged models as a sweep."""
    models = json.loads(path.read_text(encoding="utf-8"))["models"]
    level = {m["method"]: m["mem"] for m in models if m["method"] in ("full", "retain")}
    gap = abs(level["retain"] - level["full"])
    by_setting: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for model in models:
        if model["lr"] is not None:
            setting, _, epochs = model["model"].rpartition("_ep")
            by_setting[model["method"]][setting][int(epochs)] = model
    for method, settings in sorted(by_setting.items()):
        trials = [
            [
                _probe(
                    step,
                    {
                        "forget_closure": max(-1.0, 1 - abs(m["mem"] - level["retain"]) / gap),
                        "retain_utility": m["utility_rel"],
                        "forget_nll": 1.0,
                    },
                )
                for step, m in sorted(probes.items())
            ]
            for probes in settings.values()
        ]
        yield Recorded(name=method, group="tofu", spec=_tofu_sweep(), trials=trials)


def _tofu_sweep() -> SweepSpec:
    guard = {"metrics": ["retain_utility"], "limit": 1.0 - UTILITY, "hard_limit": 0.5}
    return SweepSpec.model_validate(
        {
            "schema": 1,
            "name": "tofu",
            "model": {},
            "data": {},
            "space": {"optimizer.learning_rate": {"categorical": [1e-5], "why": "not sampled"}},
            "constraints": [{"metric": "retain_utility", "at_least": UTILITY}],
            "pruning": {"retain": guard | {"patience": 2, "grace_steps": 0}},
            "stop": {"past_target": None},
            "budget": {"trials": 1, "max_steps": 10, "probe_every": 5},
        }
    )


def compare(recorded: Sequence[Recorded], *, orders: int, seed: int) -> list[dict[str, Any]]:
    """A row for each pruner: means over the sweeps and the orders."""
    rows = []
    for name in prunings(recorded[0].spec.pruning.retain):
        saved, lost = [], []
        for sweep in recorded:
            rng = np.random.default_rng(seed)
            pruning = prunings(sweep.spec.pruning.retain)[name]
            for _ in range(orders):
                made = replay(sweep, pruning, rng.permutation(len(sweep.trials)).tolist())
                saved.append(1.0 - made.steps / sweep.steps)
                lost.append(made.lost)
        rows.append(
            {
                "pruner": name,
                "steps_saved": float(np.mean(saved)),
                "steps_saved_range": [float(min(saved)), float(max(saved))],
                "winner_lost": float(np.mean(np.array(lost) > 1e-9)),
                "value_lost": float(np.mean(lost)),
                "most_value_lost": float(max(lost)),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines."""
    lines = [
        "| pruner | steps saved (least to most) | winner lost, of all orders | value lost, mean (most) |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        low, high = row["steps_saved_range"]
        lines.append(
            f"| {row['pruner']} | {row['steps_saved']:.0%} ({low:.0%} to {high:.0%}) "
            f"| {row['winner_lost']:.0%} | {row['value_lost']:.3f} ({row['most_value_lost']:.3f}) |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="*", help="run folders")
    parser.add_argument("--tofu", type=Path, help="tofu-150-models.json")
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="name of the JSON and the Markdown file")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recorded = [from_run(folder) for folder in options.runs]
    recorded += from_tofu(options.tofu) if options.tofu else []
    if not recorded:
        parser.error("give run folders, --tofu, or both")
    groups: dict[str, list[Recorded]] = defaultdict(list)
    for sweep in recorded:
        groups[sweep.group].append(sweep)
    facts = {
        "orders": options.orders,
        "seed": options.seed,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, optuna {optuna.__version__}",
    }
    lines = ["# Pruners on recorded trials", ""]
    lines += [f"`benchmarks/pruners.py`, {', '.join(f'{k} {v}' for k, v in facts.items())}.", ""]
    found: dict[str, Any] = dict(facts) | {"groups": {}}
    for group, sweeps in groups.items():
        rows = compare(sweeps, orders=options.orders, seed=options.seed)
        found["groups"][group] = {
            "sweeps": {s.name: {"trials": len(s.trials), "steps": s.steps} for s in sweeps},
            "rows": rows,
        }
        sizes = ", ".join(f"{s.name} {len(s.trials)} trials of {s.steps} steps" for s in sweeps)
        lines += [f"## {group}", "", f"{sizes}.", "", *table(rows), ""]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        options.out.with_suffix(".md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
