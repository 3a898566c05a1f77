"""Read what a user wrote: YAML files, ``--set`` on top of them, and the sweep that they make up.

A sweep file is read here, above the sections that it is made of (:mod:`tuning.config`) and the space that
they span (:mod:`tuning.space`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core.config import describe_problems
from core.errors import ConfigError
from tuning import strict_yaml
from tuning.config import SweepSpec
from tuning.space import problems_apart, space_problems
from tuning.starts import with_runs_read

MAX_FILE_BYTES = 1 << 20
_PATH_KEYS = ("source", "mirror", "retain_only")


def load_sweep(path: Path | str, *, overrides: Mapping[str, Any] | None = None) -> SweepSpec:
    """Read and check a sweep file; relative paths in it become absolute.

    Args:
        path: A YAML file.
        overrides: Dotted path to value, from ``--set``.

    Raises:
        ConfigError: With every problem at once.
    """
    path = Path(path)
    values = read_specification(path, overrides or {})
    spec = parse_sweep(with_runs_read(values, path.parent, where=str(path)), where=str(path))
    problem = spec.trial_selection().horizon_problem
    if problem:
        raise ConfigError(str(path), [f"stop.past_target: {problem}"])
    return spec


def read_specification(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a sweep or preparation file with ``overrides``, all paths absolute.

    Relative paths in the file are relative to it, those of ``--set`` to the current folder.

    Raises:
        ConfigError: If the file is no mapping, or an override runs through a value.
    """
    values = anchored(read_yaml(path), path.parent)
    for key, value in overrides.items():
        is_path = key.rpartition(".")[2] in _PATH_KEYS and isinstance(value, str)
        here = is_path and ":" not in value and Path(value).exists()
        set_dotted(values, key, str(Path(value).resolve()) if here else value, where=str(path))
    return values


def parse_sweep(values: Mapping[str, Any], *, where: str) -> SweepSpec:
    """Check plain values: the format first, then that every searched field fits a trial.

    Raises:
        ConfigError: With every problem at once.
    """
    try:
        spec = SweepSpec.model_validate(values)
    except ValidationError as err:
        found = [*describe_problems(err, SweepSpec), *problems_apart(values)]
        raise ConfigError(where, found) from err
    problems = space_problems(spec)
    if problems:
        raise ConfigError(where, problems)
    return spec


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file: safe loader, no duplicate keys, at most 1 MiB.

    Raises:
        ConfigError: If the file is missing, too large, or no such mapping.
    """
    if not path.is_file():
        raise ConfigError(str(path), ["file does not exist; check the path"])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(str(path), [f"file exceeds {MAX_FILE_BYTES} bytes; it is no sweep file"])
    try:
        text = path.read_text(encoding="utf-8")
        values, duplicates = strict_yaml.load(text, allows_aliases=True)
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(str(path), [_no_yaml(err)]) from err
    if duplicates:
        found = [_no_yaml(f"key {again.key!r} is given twice {again.mark}") for again in duplicates]
        raise ConfigError(str(path), found)
    if not isinstance(values, dict):
        raise ConfigError(str(path), [f"a mapping is expected, got {type(values).__name__}"])
    return values


def _no_yaml(reason: object) -> str:
    return f"not YAML: {' '.join(str(reason).split())}"


def set_dotted(values: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set ``a.b.c`` in nested mappings; in ``space``, the rest of the path is one key.

    Raises:
        ConfigError: If the path runs through something that is no mapping.
    """
    head, _, rest = key.partition(".")
    if head == "space" and rest:
        raise ConfigError(
            where, [f"--set {key}: change the search space in the file, not by --set"]
        )
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(where, [f"--set {key}: {parent!r} holds a value, not a section"])
        place = inner
    place[last] = value


def anchored(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make relative paths in ``model`` and ``data`` absolute, relative to the file that holds them."""
    result = json.loads(json.dumps(values, default=str))
    data = result.get("data")
    sections = [result.get("model"), *(data.values() if isinstance(data, dict) else ())]
    for section in sections:
        for key in _PATH_KEYS:
            path = section.get(key) if isinstance(section, dict) else None
            if not isinstance(path, str) or ":" in path or Path(path).is_absolute():
                continue
            if (folder / path).exists():
                section[key] = str((folder / path).resolve())
    return dict(result)
