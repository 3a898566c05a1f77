"""Check a file without starting anything. Imports neither torch nor Ray but for cluster files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config import ModelConfig, SourceConfig, TrialConfig, parse_trial
from core.data.sources import source_problem
from core.data.splits import ROLES
from core.errors import ConfigError
from tuning.config import SweepSpec
from tuning.files import load_sweep, read_yaml
from tuning.prepare import load_preparation
from tuning.space import bind, corner_proposals, describe


def validate_file(path: Path) -> str:
    """Say what the file is, if it is valid.

    Raises:
        ConfigError: With every problem at once.
    """
    values = read_yaml(path)
    from tuning.cluster import is_cluster_file, validate_cluster_file

    if is_cluster_file(values):
        problems = validate_cluster_file(path)
        if problems:
            raise ConfigError(str(path), problems)
        return f"{path}: a valid cluster file"
    if "training" in values:
        return _validate_preparation(path)
    if "space" in values or "schema" in values:
        return _validate_sweep(path)
    trial = parse_trial(values, where=str(path))
    _refuse_missing(trial, str(path))
    return f"{path}: a valid trial"


def _validate_sweep(path: Path) -> str:
    spec = load_sweep(path)
    refuse_missing(spec, where=str(path))
    ranges = "; ".join(f"{n}: {describe(d)}" for n, d in spec.space.items())
    return f"{path}: a valid sweep of {spec.budget.trials} trials over {ranges}"


def _validate_preparation(path: Path) -> str:
    config = load_preparation(path, overrides={})
    _refuse_absent(
        {"forget": config.data.forget, "retain": config.data.retain}, config.model, str(path)
    )
    return f"{path}: a valid preparation of {config.training.epochs} epochs"


def refuse_missing(spec: SweepSpec, *, where: str) -> None:
    """Refuse a sweep whose model or data are not there, as far as can be told without loading them.

    Raises:
        ConfigError: With every problem at once.
    """
    _refuse_missing(bind(spec, next(iter(corner_proposals(spec))), where=where), where)


def _refuse_missing(trial: TrialConfig, where: str) -> None:
    _refuse_absent({role: getattr(trial.data, role) for role in ROLES}, trial.model, where)


def _refuse_absent(sources: Mapping[str, SourceConfig], model: ModelConfig, where: str) -> None:
    """Refuse what is not there, model first.

    Raises:
        ConfigError: With every problem at once.
    """
    problems = [model_problem({"source": model.source})]
    if model.retain_only is not None:
        other = model_problem({"source": model.retain_only})
        advice = "; `unlearn-tune prepare` makes one"
        problems.append(other and other.replace("model.source", "model.retain_only") + advice)
    for role, source in sources.items():
        found = source_problem(source)
        problems.append(found and f"data.{role}.{found}")
    if any(problems):
        raise ConfigError(where, [p for p in problems if p])


def model_problem(model: Mapping[str, Any]) -> str | None:
    """What is wrong with a model source as far as can be told without loading it, or ``None``."""
    from core.model.packaged import PACKAGED_MODELS

    source = str(model["source"])
    kind, _, name = source.partition(":")
    if kind == "package":
        if name in PACKAGED_MODELS:
            return None
        return f"model.source: no packaged model {source!r}; known: package:{', package:'.join(PACKAGED_MODELS)}"
    is_hub_id = source.count("/") == 1 and not source.startswith((".", "/"))
    if kind == "hub" or (is_hub_id and not Path(source).parent.is_dir()):
        return None
    if not Path(source).is_dir():
        return f"model.source: {source!r} is no folder; give package:NAME, hub:ORG/NAME or a model folder"
    if not (Path(source) / "config.json").is_file():
        return f"model.source: folder {source!r} holds no config.json; it is no model folder"
    return None
