"""Check a file without starting anything. Imports neither torch nor Ray but for cluster files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config import (
    DataConfig,
    ModelConfig,
    SelectionConfig,
    SourceConfig,
    TrialConfig,
    parse_trial,
)
from core.config.evaluation import EvaluationData
from core.data.inspection import inspect_sources, size_problems
from core.data.sources import source_problem
from core.errors import ConfigError
from core.model.source import missing_package, problem, tokenizer_problem
from tuning.cluster import described, is_cluster_file, is_script, validate_cluster_file
from tuning.config import SweepSpec
from tuning.evaluate import read_data
from tuning.files import load_sweep, read_yaml
from tuning.prepare import load_preparation
from tuning.space import bind, corner_proposals, describe


def validate_file(path: Path) -> str:
    """Say what the file is, if it is valid.

    Raises:
        ConfigError: With every problem at once.
    """
    if is_script(path):
        return _validate_cluster(path, None)
    values = read_yaml(path)
    if is_cluster_file(values):
        return _validate_cluster(path, values)
    if "training" in values:
        return _validate_preparation(path)
    if "claim" in values:
        return _validate_guideline(path, values)
    if "space" in values or "schema" in values:
        return _validate_sweep(path)
    if values.keys() == {"data"} or (values.keys() & EvaluationData.model_fields.keys()):
        return _validate_evaluation(path)
    trial = parse_trial(values, where=str(path))
    if trial.selection.horizon_problem:
        raise ConfigError(str(path), [f"selection.past_target: {trial.selection.horizon_problem}"])
    _refuse_absent(trial.data.sources, trial.model, str(path))
    notes = _refuse_unfit(trial.data, [trial], where=str(path))
    return "\n".join([f"{path}: a valid trial", *_warned(trial.selection), *notes])


def _validate_cluster(path: Path, values: Mapping[str, Any] | None) -> str:
    problems = validate_cluster_file(path, values)
    if problems:
        raise ConfigError(str(path), problems)
    return f"{path}: a valid {described(path, values)}"


def _validate_sweep(path: Path) -> str:
    spec = load_sweep(path)
    notes = refuse_missing(spec, where=str(path))
    ranges = "; ".join(f"{n}: {describe(d)}" for n, d in spec.space.items())
    said = f"{path}: a valid sweep of {spec.budget.trials} trials over {ranges}"
    return "\n".join([said, *_warned(spec.trial_selection()), *notes])


def _validate_guideline(path: Path, values: Mapping[str, Any]) -> str:
    from tuning.guidelines.catalogue import parse_guideline
    from tuning.guidelines.sweeps import sweeps_of

    guideline = parse_guideline(values, where=str(path))
    try:
        n_trials = {
            preset: sum(s.budget.trials for s in sweeps_of(guideline, preset).values())
            for preset, use in guideline.presets.items()
            if not use.published
        }
    except ConfigError as err:
        raise ConfigError(f"{path}, {err.where}", err.problems) from err
    shown = [
        f"{preset} ({n_trials[preset]} trials)" if preset in n_trials else f"{preset} (published)"
        for preset in guideline.presets
    ]
    return f"{path}: a valid guideline with the presets {', '.join(shown)}"


def _validate_preparation(path: Path) -> str:
    config = load_preparation(path, overrides={})
    sources = {"forget": config.data.forget, "retain": config.data.retain}
    _refuse_absent(sources, config.model, str(path))
    found = inspect_sources(sources)
    if found.problems:
        raise ConfigError(str(path), found.problems)
    said = f"{path}: a valid preparation of {config.training.epochs} epochs"
    return "\n".join([said, *found.notes])


def _validate_evaluation(path: Path) -> str:
    sources = read_data(path).sources
    found = [inspect_sources({role: source}) for role, source in sources.items()]
    problems = [problem for one in found for problem in one.problems]
    if problems:
        raise ConfigError(str(path), problems)
    said = f"{path}: valid data for evaluate: {', '.join(sources)}"
    return "\n".join([said, *(note for one in found for note in one.notes)])


def late_guard(selection: SelectionConfig) -> str | None:
    """A warning where grace and patience of the retain guard cover most of a trial's probes, or ``None``."""
    guard, n = selection.retain_guard, selection.n_probes
    if guard is None or 2 * guard.first_verdict <= n:
        return None
    step = min(guard.first_verdict * selection.probe_every, selection.max_steps)
    when = (
        f"can first act on its limit at probe {guard.first_verdict} of {n}, step {step} of {selection.max_steps}"
        if guard.first_verdict <= n
        else f"can never act on its limit: a trial has {n} probes"
    )
    return (
        f"the retain guard {when} (grace_steps {guard.grace_steps}, patience {guard.patience}); lower them, or probe "
        "more often"
    )


def _warned(selection: SelectionConfig) -> list[str]:
    warning = late_guard(selection)
    return [] if warning is None else [f"warning: {warning}"]


def refuse_missing(spec: SweepSpec, *, where: str) -> list[str]:
    """Refuse a sweep whose model or data are not there or do not fit, as far as can be told without a tokenizer.

    Returns:
        What a person should know of the data, and what stops nothing.

    Raises:
        ConfigError: With every problem at once.
    """
    _refuse_absent(spec.trial_data().sources, spec.trial_model(), where)
    trials = [bind(spec, proposal, where=where) for proposal in corner_proposals(spec)]
    return _refuse_unfit(spec.trial_data(), trials, where=where)


def _refuse_unfit(data: DataConfig, trials: Sequence[TrialConfig], *, where: str) -> list[str]:
    """Refuse data with rows that cannot be read, that two roles share, or that are too few for all ``trials``.

    Returns:
        Notes.

    Raises:
        ConfigError: With every problem at once.
    """
    found = inspect_sources(data.sources)
    step_rows = {role: min(_step_rows(t, role) for t in trials) for role in ("retain", "general")}
    problems = [*found.problems, *size_problems(data, found.rows, step_rows=step_rows)]
    if problems:
        raise ConfigError(where, problems)
    return list(found.notes)


def _step_rows(trial: TrialConfig, role: str) -> int:
    """Rows of a role that one optimiser step of a trial reads, as far as the configuration says it."""
    is_own = trial.method.retain_source == "in_distribution"
    if (
        trial.method.retain_loss == "none"
        or trial.batch.whole_forget_set
        or is_own != (role == "retain")
    ):
        return 0
    return trial.batch_plan().global_batch_size


def _refuse_absent(sources: Mapping[str, SourceConfig], model: ModelConfig, where: str) -> None:
    """Refuse what is not there, model first.

    Raises:
        ConfigError: With every problem at once.
    """
    problems = [problem(model.source, field="model.source"), missing_package(model)]
    if model.tokenizer is not None:
        problems.append(tokenizer_problem(model.tokenizer))
    if model.retain_only is not None:
        other = problem(model.retain_only, field="model.retain_only")
        problems.append(other and f"{other}; `unlearn-tune prepare` makes one")
    for role, source in sources.items():
        found = source_problem(source)
        problems.append(found and f"data.{role}.{found}")
    if any(problems):
        raise ConfigError(where, [p for p in problems if p])
