"""Measure a guideline: run its sweeps, go on with interrupted ones, reuse those that are there, take the statistic."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.model.machine import installed_gpus, processor
from tuning.config import SweepSpec
from tuning.guidelines.catalogue import Guideline, PresetName, bases
from tuning.guidelines.evidence import Evidence, from_run
from tuning.guidelines.published import DATA_VARIABLE, published
from tuning.guidelines.record import Record
from tuning.guidelines.statistics import STATISTICS
from tuning.guidelines.sweeps import run_folder, sweeps_of
from tuning.plan import Launch
from tuning.progress import Progress
from tuning.records import LEDGER_FILE
from tuning.run import Run, load_run
from tuning.sweep import resume_sweep, run_sweep
from tuning.validate import refuse_missing


def measure(
    guideline: Guideline,
    preset: PresetName,
    *,
    runs: Path,
    launch: Launch,
    overrides: Mapping[str, Any],
    say: Callable[[str], None],
) -> Record:
    """Bring the evidence together and take the statistic.

    Args:
        guideline: The guideline.
        preset: Under which it is tested.
        runs: Folder of the run folders.
        launch: How to meet Ray.
        overrides: Dotted key to value, over every sweep.
        say: Takes a line when a sweep begins or is reused.

    Raises:
        UserError: If the preset, model, data or published trials are not there, or a sweep failed.
        Interrupted: If a signal ended a sweep; the next call goes on where it stopped.
    """
    use = guideline.use(preset)
    evidence: Evidence
    if use.published:
        evidence = published(use.published)
        done: Mapping[str, Run] = {}
        subject = [_published_subject(evidence, use.published)]
    else:
        specs = sweeps_of(guideline, preset, overrides=overrides)
        if launch.address is None:  # a cluster may have what this machine has not
            for name, spec in specs.items():
                refuse_missing(spec, where=f"guideline {guideline.id}, sweep {name}")
        base = bases()[use.base or preset]
        n_trials = sum(spec.budget.trials for spec in specs.values())
        sweeps = "1 sweep" if len(specs) == 1 else f"{len(specs)} sweeps"
        say(
            f"{guideline.id}: {sweeps}, {n_trials} trials; preset {preset} is meant for {base.machine} and at most "
            f"{base.minutes} minutes"
        )
        done = {
            n: finished(s, run_folder(s, runs), launch=launch, say=say) for n, s in specs.items()
        }
        evidence = {name: from_run(run) for name, run in done.items()}
        subject = _subject(specs, done)
    findings = STATISTICS[guideline.statistic](evidence, **guideline.settings_under(preset))
    return Record(
        id=guideline.id,
        preset=preset,
        date=datetime.now(UTC).date().isoformat(),
        machine=_machine(),
        commands=_commands(guideline, preset, overrides, reads_published=bool(use.published)),
        subject=subject,
        findings=findings,
        minutes=round(sum(run.elapsed_s or 0.0 for run in done.values()) / 60, 1) if done else None,
    )


def finished(spec: SweepSpec, run_dir: Path, *, launch: Launch, say: Callable[[str], None]) -> Run:
    """The run of a sweep, brought to its end.

    Raises:
        UserError: If another driver is at work on it, or no trial of it could be finished.
        Interrupted: If a signal ended it.
    """
    done = 0
    is_there = (run_dir / LEDGER_FILE).is_file()
    if is_there:
        run = load_run(run_dir)
        done = sum(t.has_ended for t in run.trials)
        if run.state == "running":
            raise UserError(f"{run_dir}: a driver is at work on it; wait for it, then call again")
        if run.state in ("done", "no_feasible") and done >= spec.budget.trials:
            say(f"{run_dir}: reused, {done} trials")
            return run
    say(f"{run_dir}: {done} of {spec.budget.trials} trials are done")
    with Progress(spec, target=spec.budget.trials, done=done) as progress:
        if is_there:
            run = resume_sweep(run_dir, trials=spec.budget.trials, launch=launch, watcher=progress)
        else:
            run = run_sweep(spec, run_dir, launch=launch, watcher=progress)
    if run.state == "failed":
        raise UserError(
            f"{run_dir}: its trials failed; the reasons are in `unlearn-tune best {run_dir}`. Nothing is concluded "
            "from it"
        )
    return run


def _machine() -> str:
    """What this machine is, and the versions that its figures hang on."""
    parts = [processor(), f"{os.cpu_count()} cores"]
    if n_gpus := len(installed_gpus()):
        parts.append("1 GPU" if n_gpus == 1 else f"{n_gpus} GPUs")
    return ", ".join([*parts, f"Python {platform.python_version()}", f"torch {version('torch')}"])


def _published_subject(evidence: Evidence, sources: Sequence[str]) -> str:
    """How many published trials there were, and how many models of them were measured."""
    trials = [trial for found in evidence.values() for trial in found]
    n_models = sum(len(trial.readings) for trial in trials)
    models = "" if n_models == len(trials) else f", {n_models} models of theirs"
    return f"{len(trials)} published trials{models} ({', '.join(sources)}), which others trained."


def _subject(specs: Mapping[str, SweepSpec], runs: Mapping[str, Run]) -> list[str]:
    """Model, data, methods and budget of the sweeps, and how many trials there were."""
    first = next(iter(specs.values()))
    data = first.trial_data()
    n_trials = sum(len(run.trials) for run in runs.values())
    n_failed = sum(t.state == "FAIL" for run in runs.values() for t in run.trials)
    seeds = first.space["seed"].categorical or ()
    steps = sorted({spec.budget.max_steps for spec in specs.values()})
    limits = ", ".join(f"{c.metric} {c.words}" for c in first.constraints)
    return [
        f"model {first.trial_model().source}; forget set {data.forget.source}, retain set {data.retain.source}, "
        f"general set {data.general.source};",
        f"sweeps {', '.join(specs)};",
        f"{n_trials} trials ({n_failed} failed) of at most {' or '.join(map(str, steps))} steps over "
        f"{len(seeds)} seeds; limits: {limits}.",
    ]


def _commands(
    guideline: Guideline, preset: str, overrides: Mapping[str, Any], *, reads_published: bool
) -> list[str]:
    changes = "".join(f" --set {key}={value}" for key, value in overrides.items())
    variable = f"{DATA_VARIABLE}=FOLDER " if reads_published else ""
    return [f"{variable}unlearn-tune reproduce {guideline.id} --preset {preset}{changes}"]
