"""Configurations of earlier runs as starting points: ``{run: ../runs/demo, top: 5}`` in place of values.

They are read when the sweep file is read, and stand in ``spec.yaml`` as values with their source: a run that is changed
or lost later changes nothing. Trials that differ in their seed alone are one configuration, which its mean ranks: the
highest of them is the luckiest seed.
"""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from core.errors import ConfigError, UserError
from core.store.confinement import inside
from tuning.config import Dimension
from tuning.points import SEED, Params, without_seed
from tuning.ranking import is_candidate, ranked
from tuning.records import LEDGER_FILE, TrialRecord, read_ledger
from tuning.space import contains, describe

DEFAULT_TOP: Final = 5
"""Trials of an earlier run that are taken where the file does not say."""

_KEYS: Final = frozenset({"run", "top"})


def with_runs_read(values: Mapping[str, Any], folder: Path, *, where: str) -> dict[str, Any]:
    """Values of a sweep file with every ``run`` among its starting points, and those of its prior, replaced.

    Args:
        values: Plain values; what is wrong with others of them is not looked at.
        folder: What relative paths are relative to.
        where: The file, for errors.

    Raises:
        ConfigError: With every problem of such entries.
    """
    found, problems = dict(values), list[str]()
    space = _space(values.get("space"))
    if "start_from" in found:
        entries = found["start_from"]
        found["start_from"] = _read(entries, "start_from", folder, space, problems)
    sampler = found.get("sampler")
    prior = sampler.get("prior") if isinstance(sampler, dict) else None
    if isinstance(prior, dict):
        place = "sampler.prior"
        if _KEYS & prior.keys():
            entry = {key: prior[key] for key in prior if key in _KEYS}
            rest = {key: prior[key] for key in prior if key not in _KEYS}
            points = _read([entry], place, folder, space, problems)
            prior = rest | {"points": points}
        elif "points" in prior:
            points = _read(prior["points"], f"{place}.points", folder, space, problems)
            prior = prior | {"points": points}
        found["sampler"] = dict(found["sampler"]) | {"prior": prior}
    if problems:
        raise ConfigError(where, problems)
    return found


def _space(values: Any) -> dict[str, Dimension]:
    """The ranges that are valid; the others are named when the file is checked."""
    found = {}
    for name, range_ in values.items() if isinstance(values, Mapping) else ():
        try:
            found[str(name)] = Dimension.model_validate(range_)
        except ValidationError:
            continue
    return found


def _read(
    entries: Any, place: str, folder: Path, space: Mapping[str, Dimension], problems: list[str]
) -> Any:
    if isinstance(entries, Mapping):
        entries = [entries]
    if not isinstance(entries, list):
        return entries
    found: list[Any] = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "run" not in entry:
            found.append(entry)
            continue
        at = place if len(entries) == 1 else f"{place}.{i}"
        try:
            found += _of_run(entry, folder, space)
        except UserError as err:
            problems.append(f"{at}: {err}")
    return found


def _is_file(path: Path) -> bool:
    """Whether a path leads to a file; one that no file system takes leads nowhere."""
    try:
        return path.is_file()
    except OSError:
        return False


def _of_run(
    entry: Mapping[str, Any], folder: Path, space: Mapping[str, Dimension]
) -> Iterator[dict[str, Any]]:
    unknown = [str(key) for key in entry if key not in _KEYS]
    if unknown:
        raise UserError(f"beside run only top is known, got {', '.join(unknown)}")
    top = entry.get("top", DEFAULT_TOP)
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise UserError(f"top: must be a whole number from 1 on, got {top!r}")
    path = Path(os.path.expanduser(str(entry["run"])))  # noqa: PTH111 - pathlib's raises for ~nobody
    run = path if path.is_absolute() else folder / path
    if not _is_file(run / LEDGER_FILE):
        raise UserError(
            f"run: {entry['run']!r} holds no {LEDGER_FILE}; give the folder of a sweep, relative to the sweep file"
        )
    trials, _ = read_ledger(inside(run, LEDGER_FILE))
    best = _configurations([t for t in ranked(trials) if is_candidate(t)], space)
    if not best:
        raise UserError(f"run: no trial of {entry['run']} kept every limit; leave it out")
    kept = [of for of in best if not _outside(of[0], space)]
    if not kept:
        first = best[0][0]
        name, range_ = next((n, space[n]) for n in _outside(first, space))
        raise UserError(
            f"run: no trial of {entry['run']} lies within this space: {name} = {first.params[name]!r} of trial "
            f"{first.number} is not in {describe(range_)}; widen the space, or leave the run out"
        )
    return iter(
        [
            {
                "source": f"{_named(of)} of {run.resolve().name}",
                "values": {name: of[0].params[name] for name in space if name in of[0].params},
            }
            for of in kept[:top]
        ]
    )


def _configurations(
    candidates: Sequence[TrialRecord], space: Mapping[str, Dimension]
) -> list[list[TrialRecord]]:
    """Candidates by configuration, in order: by how many seeds kept every limit, then by their mean.

    Where each stands alone, this is the order that was given. If the seed is searched anew, it is a value like others.
    """
    if SEED in space:
        return [[trial] for trial in candidates]
    found: dict[Params, list[TrialRecord]] = {}
    for trial in candidates:
        found.setdefault(without_seed(trial.params), []).append(trial)
    groups = list(found.values())
    if any(len(of) > 1 for of in groups):
        groups.sort(key=lambda of: (len(of), statistics.fmean(t.merit for t in of)), reverse=True)
    return groups


def _named(trials: Sequence[TrialRecord]) -> str:
    """``trial 3``, or ``trials 3, 4, 5``."""
    numbers = ", ".join(str(n) for n in sorted(t.number for t in trials))
    return f"trial{'s' if len(trials) > 1 else ''} {numbers}"


def _outside(trial: TrialRecord, space: Mapping[str, Dimension]) -> list[str]:
    """Searched fields whose value a trial has outside of their range."""
    shared = [name for name in space if name in trial.params]
    return [name for name in shared if not contains(space[name], trial.params[name])]
