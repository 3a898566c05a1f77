"""What figures read from the records of a run: kinds and endings of trials, their counts, and numbers."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tuning.plots.style import ENDINGS, KINDS, Ending, Kind
from tuning.records import TrialRecord


def kind_of(trial: TrialRecord) -> Kind:
    """What a trial came to."""
    if trial.state == "COMPLETE":
        return "feasible" if trial.feasible else "infeasible"
    if trial.state == "PRUNED":
        return "pruned"
    return "failed" if trial.state == "FAIL" else "running"


def ending_of(trial: TrialRecord) -> Ending:
    """Why a trial ended."""
    if trial.state == "FAIL":
        return "failed"
    return next((e for e in ENDINGS if e == trial.stopped_by), "other")


def number_or_nan(value: Any) -> float:
    """A number from a record or a history line, where NaN and infinities stand as words."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def n_by_kind(kinds: Iterable[Kind]) -> dict[Kind, int]:
    """Count of each kind that occurs, in the order of legends."""
    found = Counter(kinds)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def n_by_ending(endings: Iterable[Ending | None]) -> dict[Ending, int]:
    """Count of each ending that occurs, in the order of legends; a trial that runs has none."""
    found = Counter(endings)
    return {ending: found[ending] for ending in ENDINGS if found[ending]}
