"""Good files of every form that a user writes, and what reads each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from mutation.judging import Ending, of_call, of_command

from tuning.evaluate import read_data
from tuning.files import load_sweep
from tuning.space import bind, corner_proposals

ROOT = Path(__file__).resolve().parents[2]
Reader = Callable[[Path], Ending]
"""Reads a file as the commands do that take one, and says how that ended."""


@dataclass(frozen=True)
class GoodFile:
    """A file that is valid.

    Attributes:
        form: What it is: sweep, trial, preparation, ...
        name: Which.
        content: Its bytes.
        read: What reads it.
    """

    form: str
    name: str
    content: bytes
    read: Reader


def good_files() -> list[GoodFile]:
    """Those that the project ships, and a trial of each sweep as ``export`` writes it."""
    found = [_shipped("sweep", path, _validated) for path in _yaml("search_spaces/*.yaml")]
    found += [
        _shipped("published", path, _validated) for path in _yaml("search_spaces/published/*.yaml")
    ]
    found += [
        _shipped("guideline", path, _validated)
        for path in _yaml("search_spaces/guidelines/[0-9]*.yaml")
    ]
    found += [_shipped("preparation", ROOT / "examples/prepare_authors.yaml", _validated)]
    found += [_shipped("evaluation data", ROOT / "examples/evaluate_authors.yaml", _read_as_data)]
    clusters = [ROOT / "cluster.yaml", *_yaml("clusters/*.yaml")]
    found += [_shipped("cluster", path, _validated) for path in clusters]
    return found + [_trial(path) for path in _yaml("search_spaces/*.yaml")]


def _yaml(pattern: str) -> list[Path]:
    return sorted(ROOT.glob(pattern))


def _shipped(form: str, path: Path, read: Reader) -> GoodFile:
    return GoodFile(form, path.name, path.read_bytes(), read)


def _trial(path: Path) -> GoodFile:
    """The first trial of a sweep as ``export`` writes it."""
    spec = load_sweep(path)
    trial = bind(spec, next(corner_proposals(spec)), where=path.name)
    text = yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False)
    return GoodFile("trial", path.name, text.encode(), _validated)


def _validated(path: Path) -> Ending:
    return of_command("validate", path, names=[str(path)])


def _read_as_data(path: Path) -> Ending:
    return of_call(lambda: read_data(path), names=[str(path)])
