"""What attempts committed to the run folder: proposals, probes, results. Plain files, without Ray and Optuna.

The worker commits its probes, the driver everything else, each before the ledger is told: what the ledger says of a
trial can be said again from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.errors import FileError
from core.measuring.selection import Probe, probe_of
from core.store.durable import commit_json, finite
from core.store.texts import read_json
from core.store.told import RESULT_FILE
from tuning.objective import Outcome
from tuning.records import as_numbers, history_lines

PROPOSAL_FILE = "proposal.json"
"""In the folder of a trial: what it was born with."""
DECISIONS = "decisions"
"""Key in a result: what was decided about each probe, by attempt and step."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a trial was born with.

    Attributes:
        params: A value for each dimension whose conditions hold.
        user_attrs: Who proposed it, and why.
        system_attrs: What the sampler noted.
    """

    params: Mapping[str, Any]
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was told of a trial.

    Attributes:
        outcome: How it ended.
        adapter: Folder of its adapter, relative to the run folder.
        duration_s: Seconds of the attempt.
        decisions: What was decided about its probes, as the ledger has it; empty in runs of earlier releases.
    """

    outcome: Outcome
    adapter: str | None
    duration_s: float
    decisions: Mapping[str, Any]


def commit_proposal(trial_folder: Path, proposal: Proposal) -> None:
    """Keep what a trial was born with, unless it is kept already."""
    path = trial_folder / PROPOSAL_FILE
    if not path.exists():
        commit_json(path, {f.name: dict(getattr(proposal, f.name)) for f in fields(proposal)})


def read_proposal(trial_folder: Path) -> Proposal | None:
    """What a trial was born with; ``None`` where that was not kept, as by earlier releases.

    Raises:
        FileError: If the file is damaged.
    """
    path = trial_folder / PROPOSAL_FILE
    if not path.is_file():
        return None
    found = read_json(path)
    groups = {f.name: _mapping(path, found, f.name) for f in fields(Proposal)}
    return Proposal(**groups)


def read_result(attempt_folder: Path) -> Result | None:
    """What was told of a trial after an attempt; ``None`` if nothing was.

    Raises:
        FileError: If the file is damaged.
    """
    path = attempt_folder / RESULT_FILE
    if not path.is_file():
        return None
    found = as_numbers(read_json(path))
    try:
        outcome = {f.name: found[f.name] for f in fields(Outcome) if f.name in found}
        for name in ("metrics", "violations"):
            outcome[name] = {str(k): float(v) for k, v in outcome[name].items()}
        outcome["value"] = float(outcome["value"])
        outcome["intervals"] = _ends(outcome.get("intervals", {}))
        ends = outcome.get("value_interval")
        outcome["value_interval"] = None if ends is None else _ends({"value": ends})["value"]
        return Result(
            outcome=Outcome(**outcome),
            adapter=found["adapter"],
            duration_s=float(found["duration_s"]),
            decisions=dict(finite(found.get(DECISIONS, {}))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise FileError(
            str(path),
            f"is not what a sweep wrote ({type(err).__name__}: {err}); restore it from a copy",
        ) from err


def committed_probes(folder: Path) -> list[Probe]:
    """The probes that an attempt committed, in order, without the untouched model's.

    Raises:
        FileError: If the history is damaged.
    """
    try:
        return [probe_of(line) for line in history_lines(folder) if line["step"] > 0]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise FileError(
            str(folder / "history.jsonl"),
            f"is not what a trial wrote ({type(err).__name__}: {err}); restore it from a copy",
        ) from err


def _mapping(path: Path, found: Any, name: str) -> dict[str, Any]:
    group = found.get(name) if isinstance(found, dict) else None
    if not isinstance(group, dict):
        raise FileError(
            str(path), f"{name}: an object is expected, got {group!r}; restore it from a copy"
        )
    return group


def _ends(intervals: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}
