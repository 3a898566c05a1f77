"""Read what a user wrote: YAML files, ``--set`` on top of them, and the sweep that they make up.

A sweep file is read here, above the sections that it is made of (:mod:`tuning.config`) and the space that
they span (:mod:`tuning.space`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core.config import describe_problems
from core.errors import ConfigError, FileError
from core.store.durable import refuse_broken_seal
from core.store.texts import read_text
from tuning import strict_yaml
from tuning.config import SweepSpec
from tuning.pinning import pin
from tuning.space import problems_apart, space_problems, with_meant_numbers
from tuning.starts import with_runs_read

MAX_FILE_BYTES = 1 << 20
_PATH_KEYS = ("source", "mirror", "retain_only", "tokenizer")


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

    Relative paths in the file are relative to it, those of ``--set`` to the current folder. A searched field that is
    overridden is not searched any more, see :func:`tuning.pinning.pin`.

    Raises:
        ConfigError: If the file is no mapping, or an override runs through a value.
    """
    values = anchored(read_yaml(path), path.parent)
    for key, value in overrides.items():
        is_path = key.rpartition(".")[2] in _PATH_KEYS and isinstance(value, str)
        here = is_path and leads_from(Path(), value)
        set_dotted(values, key, str(Path(value).resolve()) if here else value, where=str(path))
        pin(values, key, value, where=str(path))
    return values


def parse_sweep(values: Mapping[str, Any], *, where: str) -> SweepSpec:
    """Check plain values: the format first, then that every searched field fits a trial.

    Raises:
        ConfigError: With every problem at once.
    """
    values = with_meant_numbers(values)
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
        ConfigError: If the file is missing, too large, or no such mapping; or a record of ours that has changed.
    """
    if not path.is_file():
        absent = "file does not exist; check the path"
        raise ConfigError(str(path), ["is a folder; name a file" if path.is_dir() else absent])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(str(path), [f"file exceeds {MAX_FILE_BYTES} bytes; it is no sweep file"])
    try:
        text = read_text(path)
        refuse_broken_seal(text, where=str(path))
        values, duplicates = strict_yaml.load(text, allows_aliases=True)
    except FileError as err:
        place = f"line {err.line}: " if err.line else ""
        raise ConfigError(str(path), [f"{place}{err.problem}"]) from err
    except yaml.YAMLError as err:
        raise ConfigError(str(path), [f"not YAML: {strict_yaml.in_a_line(err)}"]) from err
    if duplicates:
        found = [
            f"not YAML: line {again.line}: key {again.key!r} is given twice; keep one"
            for again in duplicates
        ]
        raise ConfigError(str(path), found)
    if not isinstance(values, dict):
        raise ConfigError(str(path), [f"a mapping is expected, got {type(values).__name__}"])
    return dict(_with_text_keys(values))


def _with_text_keys(value: Any) -> Any:
    """The same with every key as text: YAML reads ``on:``, ``1:`` and ``2026-01-01:`` as other values."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value


def set_dotted(values: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set ``a.b.c`` in nested mappings; in ``space``, the rest of the path is one key.

    Raises:
        ConfigError: If the path runs through something that is no mapping.
    """
    head, _, rest = key.partition(".")
    if head == "space" and rest:
        raise ConfigError(
            where,
            [
                f"--set {key}: change ranges in the file, not by --set; to fix a searched field, leave out `space.`: "
                f"--set {rest}=..."
            ],
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
            if isinstance(path, str) and not Path(path).is_absolute() and leads_from(folder, path):
                section[key] = str((folder / path).resolve())
    return dict(result)


def leads_from(folder: Path, source: str) -> bool:
    """Whether a source is a path that leads to something from a folder; one that no file system takes does not."""
    try:
        return ":" not in source and (folder / source).exists()
    except OSError:
        return False


def paths_changed(values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """``values`` with what stands in ``model`` and ``data`` where a path may stand replaced by ``change`` of it."""
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    data = result.get("data")
    for section in (result.get("model"), *(data.values() if isinstance(data, dict) else ())):
        for key in _PATH_KEYS:
            if isinstance(section, dict) and isinstance(section.get(key), str):
                section[key] = change(section[key])
    return result
