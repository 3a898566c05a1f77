"""What each choice of a categorical field led to: how many trials kept the limits, the best value and the spread."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.config import SweepSpec
from tuning.ranking import in_order, is_candidate
from tuning.records import TrialRecord


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """Trials of one choice.

    Attributes:
        choice: The value.
        n_trials: Trials with it that ended.
        n_feasible: Those among them that kept every limit.
        best: The best of these; ``None`` if there is none.
        median: Median of their values.
        low: Smallest of them.
        high: Largest of them.
    """

    choice: Any
    n_trials: int
    n_feasible: int
    best: TrialRecord | None
    median: float | None
    low: float | None
    high: float | None


def choice_tables(
    spec: SweepSpec, trials: Sequence[TrialRecord]
) -> Mapping[str, Sequence[ChoiceRow]]:
    """A row for each choice that was tried, by field; fields of which one choice was tried are left out.

    A trial without the field, because of ``when``, is in no row of it.
    """
    ended = [t for t in trials if t.has_ended]
    tables = {
        name: [
            _row(choice, of)
            for choice in dimension.categorical
            if (of := [t for t in ended if name in t.params and t.params[name] == choice])
        ]
        for name, dimension in spec.space.items()
        if dimension.categorical
    }
    return {name: rows for name, rows in tables.items() if len(rows) > 1}


def _row(choice: Any, trials: Sequence[TrialRecord]) -> ChoiceRow:
    kept = [t for t in trials if is_candidate(t) and t.value is not None]
    values = [t.value for t in kept if t.value is not None]
    return ChoiceRow(
        choice=choice,
        n_trials=len(trials),
        n_feasible=len(kept),
        best=in_order(kept)[0] if kept else None,
        median=statistics.median(values) if values else None,
        low=min(values, default=None),
        high=max(values, default=None),
    )
