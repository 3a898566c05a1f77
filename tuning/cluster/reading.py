"""Read a file that describes a cluster: small, plain, and refused in one line where it is neither."""

from pathlib import Path
from typing import Any

import yaml

from core.errors import FileError
from core.store.texts import decoded
from tuning import strict_yaml
from tuning.cluster.problems import problem

MAX_BYTES = 1 << 20
"""A cluster file larger than this is refused unread; real ones have a few kilobytes."""


def read_small(path: Path) -> tuple[bytes | None, list[str]]:
    """Content of a file; ``None``, and why, if it cannot be read or is too large to be a cluster file."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            return None, [
                f"{path.name}: must have at most {MAX_BYTES} bytes, got {n_bytes}, "
                "keep only the cluster configuration"
            ]
        return path.read_bytes(), []
    except OSError as err:
        return None, [f"{path.name}: must be a readable file, got {err.strerror}, check the path"]


def read_script(path: Path) -> tuple[str | None, list[str]]:
    """Text of a script; ``None``, and why, if it is no text."""
    content, problems = read_small(path)
    if content is None:
        return None, problems
    try:
        return decoded(content, where=path.name), []
    except FileError as err:
        return None, [str(err)]


def read_mapping(path: Path, *, model: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Read YAML strictly: no key twice, no aliases, no tags.

    Args:
        path: The file.
        model: A shipped file to start from, for the message.

    Returns:
        The mapping, ``None`` if nothing more can be said about it; and what is wrong with it as YAML.
    """
    content, problems = read_small(path)
    if content is None:
        return None, problems
    try:
        loaded, duplicates = strict_yaml.load(content, allows_aliases=False)
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        return None, [f"line {line}: must be plain YAML, got {err.problem}, correct the line"]
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        return None, [f"{path.name}: must be plain YAML, got {err}, correct the file"]
    if not isinstance(loaded, dict):
        return None, [problem(path.name, "must be a mapping", loaded, f"start from {model}")]
    return loaded, [
        f"{again.written}: a key may stand once in a mapping, got it again on line {again.line}, "
        "merge the two"
        for again in duplicates
    ]
