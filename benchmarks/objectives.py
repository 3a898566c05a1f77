"""Which objective finds the configuration that damages least at the target: the closure, or the damage itself.

For each seed the sweep file is run twice, with ``forget_closure`` and with ``drop_at_target`` as its objective, both
with landing, from the same starting points and with the same seeds. What a trial costs differs, since trials end
early; so both runs are cut where the shorter one ends, counted in trained tokens: steps, since all batches are alike.
Of what is left, the best trial by the probe split is chosen, with the order of `unlearn-tune best`, and what it damages
at its target is read off the reporting split, which neither losses nor probes saw. Every trial is measured there, so
that the cut may fall anywhere.

    python benchmarks/objectives.py search_spaces/demo.yaml --seeds 0 1 2 3 4 --out runs/objectives

The runs stay in the folder: called again it goes on, and prints what is there. It writes ``objectives.json`` and
``objectives.md`` beside them.
"""

import argparse
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from core.config import METRICS, ObjectiveMetric
from core.measuring.selection import CLOSURE_AT_TARGET, damage, damaged_metrics, drop_at_target
from core.store.durable import commit_json, commit_text
from tuning.config import SweepSpec
from tuning.files import load_sweep
from tuning.ranking import by_probes, is_candidate
from tuning.records import LEDGER_FILE, TrialRecord
from tuning.run import Run, load_run
from tuning.sweep import resume_sweep, run_sweep

COMPARED: tuple[ObjectiveMetric, ...] = ("forget_closure", "drop_at_target")
COST_FIELDS = ("batch.", "method.retain_loss")
"""Searched fields that make the steps of trials differ in tokens."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a sweep with one objective and one seed came to.

    Attributes:
        objective: The objective.
        seed: Of the trials and of the sampler.
        n_trials: Trials that finished within the tokens.
        steps: Optimiser steps that they trained.
        number: The trial that is best by the probe split; ``None`` if none is feasible.
        reached: Whether it lies on its target on the reporting split.
        landing_factor: Its factor, where it landed.
        closure: Its forget closure on the reporting split.
        drop: The largest damage there, the value of ``drop_at_target``: 1 and more if it does not lie on target.
        interval: 95 % interval of the largest damage, by resampling rows; ``None`` where it is not on target.
        keeps: Whether it keeps every constraint on the reporting split.
    """

    objective: str
    seed: int
    n_trials: int
    steps: int
    number: int | None
    reached: bool = False
    landing_factor: float | None = None
    closure: float | None = None
    drop: float | None = None
    interval: tuple[float, float] | None = None
    keeps: bool | None = None


def sweep_of(file: Path, objective: ObjectiveMetric, seed: int, trials: int | None) -> SweepSpec:
    """The sweep file with an objective, a seed, and every trial measured on the reporting split."""
    asked = load_sweep(file)
    costly = [name for name in asked.space if name.startswith(COST_FIELDS)]
    if costly:
        raise SystemExit(
            f"{file}: steps must cost alike, so {', '.join(costly)} cannot be searched here; fix it with a value"
        )
    number = trials or asked.budget.trials
    down = METRICS[objective].better == "down"
    return load_sweep(
        file,
        overrides={
            "objective.metric": objective,
            "objective.direction": "minimize" if down else "maximize",
            "stop.landing": True,
            "seed": seed,
            "sampler.seed": seed,
            "budget.trials": number,
            "budget.finalists": number,
        },
    )


def finished_run(spec: SweepSpec, folder: Path) -> Run:
    """The run of a sweep, brought to its end."""
    if (folder / LEDGER_FILE).exists():
        return resume_sweep(folder, spec=spec)
    run_sweep(spec, folder)
    return load_run(folder)


def within(run: Run, steps: int) -> list[TrialRecord]:
    """The first trials of a run that together train at most so many steps."""
    found, made = [], 0
    for trial in run.trials:
        made += trial.steps or 0
        if made > steps:
            break
        found.append(trial)
    return found


def chosen(run: Run, trials: Sequence[TrialRecord]) -> Chosen:
    """The best of some trials by the probe split, as the reporting split sees it."""
    candidates = [t for t in by_probes(trials) if is_candidate(t)]
    common: dict[str, Any] = {
        "objective": run.spec.objective.metric,
        "seed": run.spec.seed,
        "n_trials": len(trials),
        "steps": sum(t.steps or 0 for t in trials),
    }
    if not candidates:
        return Chosen(number=None, **common)
    best, selection = candidates[0], run.spec.trial_selection()
    report = best.report_metrics
    if report is None:
        raise SystemExit(f"{run.path}: trial {best.number} is not measured on the reporting split")
    reached = report["forget_closure"] >= CLOSURE_AT_TARGET
    ends = [best.report_intervals.get(metric) for metric in damaged_metrics(selection)]
    is_known = reached and all(end is not None for end in ends)
    damages = [
        sorted(damage(metric, end) for end in best.report_intervals[metric])
        for metric in (damaged_metrics(selection) if is_known else ())
    ]
    return Chosen(
        number=best.number,
        reached=reached,
        landing_factor=best.metrics.get("landing_factor"),
        closure=report["forget_closure"],
        drop=drop_at_target(report, selection),
        interval=(max(d[0] for d in damages), max(d[1] for d in damages)) if damages else None,
        keeps=best.reported_feasible,
        **common,
    )


def compared(runs: Mapping[str, Run]) -> list[Chosen]:
    """What each objective chose within the tokens that both have trained."""
    steps = min(sum(t.steps or 0 for t in run.trials) for run in runs.values())
    return [chosen(run, within(run, steps)) for run in runs.values()]


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval, Student's; infinite with a single seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return mean, mean - half, mean + half


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def summary(found: Sequence[Chosen]) -> dict[str, Any]:
    """Drops over seeds by objective, and the difference of the two, seed by seed, where both chose a trial."""
    drops = {o: {c.seed: c.drop for c in found if c.objective == o} for o in COMPARED}
    shared = [
        s for s, d in drops[COMPARED[0]].items() if None not in (d, drops[COMPARED[1]].get(s))
    ]
    by_objective = {o: [d for s in shared if (d := drops[o][s]) is not None] for o in COMPARED}
    differences = [b - a for a, b in zip(*by_objective.values(), strict=True)]
    return {
        "seeds": shared,
        "drop": {o: mean_interval(v) for o, v in by_objective.items() if v},
        "difference": mean_interval(differences) if differences else None,
    }


def markdown(file: Path, found: Sequence[Chosen], told: Mapping[str, Any]) -> str:
    """The result as a table and two sentences."""
    here = machine()
    lines = [
        f"`{file}`, {here['date']}, {here['cores']} cores of {here['machine']}. Drop at target: the largest damage "
        "on the reporting split, 95 % interval by resampling rows; 1 and more: not on target.",
        "",
        "| seed | objective | trials | steps | chosen | factor | closure | drop at target | keeps all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(found, key=lambda c: (c.seed, c.objective)):
        ends = (
            "" if one.interval is None else f" ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})"
        )
        cells = [
            str(one.seed),
            f"`{one.objective}`",
            str(one.n_trials),
            str(one.steps),
            "none feasible" if one.number is None else str(one.number),
            "" if one.landing_factor is None else f"{one.landing_factor:.2f}",
            "" if one.closure is None else f"{one.closure:.2f}",
            "" if one.drop is None else f"{one.drop:+.3f}{ends}",
            "" if one.keeps is None else "yes" if one.keeps else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    said = {f"`{o}`: mean over seeds": mean for o, mean in told["drop"].items()}
    if told["difference"] is not None:
        said[f"`{COMPARED[1]}` minus `{COMPARED[0]}`, seed by seed:"] = told["difference"]
    for what, (mean, low, high) in said.items():
        ends = f" ({low:+.3f} to {high:+.3f})" if math.isfinite(low) else ", of one seed"
        lines.append(f"{what} {mean:+.3f}{ends}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a sweep file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, help="trials of each sweep; the file's if absent")
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    asked = parser.parse_args()
    found: list[Chosen] = []
    for seed in asked.seeds:
        runs = {
            objective: finished_run(
                sweep_of(asked.file, objective, seed, asked.trials),
                asked.out / f"{objective}-{seed}",
            )
            for objective in COMPARED
        }
        found += compared(runs)
        told = summary(found)
        plain = {"file": str(asked.file), **machine(), "chosen": [asdict(c) for c in found], **told}
        commit_json(asked.out / "objectives.json", plain)
        text = markdown(asked.file, found, told)
        commit_text(asked.out / "objectives.md", text)
    print(text)


if __name__ == "__main__":
    main()
