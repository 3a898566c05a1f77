"""Which trials are best: their order, the Pareto front, and the rows in which both are shown."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol, TypeVar

from core.store.durable import finite
from tuning.records import TrialRecord

Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""


class Judged(Protocol):
    """What the order of trials looks at: a record of one, or its outcome before it is recorded."""

    @property
    def merit(self) -> float:
        """Objective of the probe that counts, with the sign by which more is better; 0 where there is none."""

    @property
    def value_interval(self) -> Interval | None:
        """Its interval."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of that probe."""

    @property
    def violations(self) -> Mapping[str, float]:
        """``metric - at_most`` of each constraint."""

    @property
    def steps(self) -> int | None:
        """Optimiser steps made."""


AnyJudged = TypeVar("AnyJudged", bound=Judged)


def excess(trial: TrialRecord) -> float:
    """Largest ``metric - at_most`` over the constraints; negative is the distance to the limit."""
    return max(trial.violations.values(), default=0.0)


def worst_drop(trial: Judged) -> float:
    """Largest excess of a constrained drop; the larger of the plain drops where none is constrained."""
    plain = [trial.metrics[m] for m in ("retain_drop", "general_drop") if m in trial.metrics]
    return max(trial.violations.values() or plain, default=0.0)


def overlap(one: Interval | None, other: Interval | None) -> bool:
    """Whether two intervals have a point in common; without an interval nothing is said."""
    if one is None or other is None:
        return False
    return max(one[0], other[0]) <= min(one[1], other[1])


def in_order(judged: Sequence[AnyJudged]) -> list[AnyJudged]:
    """Trials by value, best first; those whose 95 % interval overlaps the first one's are a tie.

    Which of a tie has the best value is chance: within it the smallest worst drop comes first, then
    the fewest steps, then the value; so it is for which of those with the best value is the first.
    Trials without an interval tie with none. Equals keep their order.
    """
    if not judged:
        return []
    by_value = sorted(judged, key=lambda t: -t.merit)
    first = by_value[0]
    if first.value_interval is not None:
        equals = [t for t in by_value if t.merit == first.merit and t.value_interval is not None]
        first = min(equals, key=lambda t: (worst_drop(t), t.steps or 0))
    tied = [t for t in by_value if t is first or _ties(t, first)]
    tied.sort(key=lambda t: (worst_drop(t), t.steps or 0, -t.merit))
    placed = set(map(id, tied))
    return tied + [t for t in by_value if id(t) not in placed]


def by_probes(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished trials, best first, by the probe split alone: candidates :func:`in_order`, then the others by value."""
    judged = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    rest = [t for t in judged if not is_candidate(t)]
    rest.sort(key=lambda t: (not t.feasible, -t.merit, t.number))
    return in_order([t for t in judged if is_candidate(t)]) + rest


def ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished trials, best first: :func:`by_probes`, and what the reporting split says of the finalists.

    Finalists that break a constraint there stand behind the last one that keeps all of them. Where none
    keeps them, the order stays.
    """
    order = by_probes(trials)
    kept = [i for i, t in enumerate(order) if is_candidate(t) and t.reported_feasible]
    if not kept:
        return order
    first, rest = order[: kept[-1] + 1], order[kept[-1] + 1 :]
    broken = [t for t in first if t.reported_feasible is False]
    return [t for t in first if t.reported_feasible is not False] + broken + rest


def is_candidate(trial: TrialRecord) -> bool:
    """Whether a trial may be called best: complete, and every constraint kept."""
    return trial.state == "COMPLETE" and trial.feasible


def best(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best feasible trial, or ``None``."""
    first = ranked(trials)[:1]
    return first[0] if first and is_candidate(first[0]) else None


def tied_with_best(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The other candidates that cannot be told from the best by their values, in the order of :func:`ranked`."""
    order = [t for t in ranked(trials) if is_candidate(t)]
    first = best(trials)
    if first is None:
        return []
    highest = max(order, key=lambda t: t.merit)
    against = highest if _ties(first, highest) else first
    return [t for t in order if t is not first and (t is against or _ties(t, against))]


def displaced(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finalists that would be best by the probe split, but break a constraint on the reporting split."""
    first = best(trials)
    order = [t for t in by_probes(trials) if is_candidate(t)]
    return [t for t in order[: order.index(first)] if t.reported_feasible is False] if first else []


def pareto_front(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Feasible trials that no other beats in both objective and largest excess (lower), best first.

    As in the ranking, a value is better only where the intervals do not overlap, and a finalist that breaks
    a constraint on the reporting split is out where another keeps it. Only COMPLETE trials count: one that
    a ranking pruner stopped may have had a feasible probe.
    """
    feasible = [t for t in ranked(trials) if is_candidate(t)]
    if any(t.reported_feasible for t in feasible):
        feasible = [t for t in feasible if t.reported_feasible is not False]
    beaten: set[int] = set()
    strongest: list[TrialRecord] = []  # of those with a smaller excess
    for _, equals in groupby(sorted(feasible, key=excess), key=excess):
        group = list(equals)
        with_group = _strongest([*strongest, *group])
        against = [*strongest, *with_group]
        beaten |= {t.number for t in group if any(_dominates(one, t) for one in against)}
        strongest = with_group
    left = [t for t in feasible if t.number not in beaten]
    if all(_holds_its_value(t) for t in feasible):
        return left
    return [t for t in left if not any(_dominates(one, t) for one in feasible)]


def _strongest(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those of which one beats whatever any of these beats, if their intervals hold their values.

    The highest value; the highest without an interval, which ties with none; the highest upper end, which
    ties with most; and the highest lower end, which is above most.
    """
    without = [t for t in trials if t.value_interval is None]
    within = [t for t in trials if t.value_interval is not None]
    found = [max(of, key=lambda t: t.merit) for of in (trials, without) if of]
    if within:
        found += [max(within, key=lambda t: merit_ends(t)[i]) for i in (0, 1)]
    return found


def merit_ends(trial: TrialRecord) -> Interval:
    """Ends of a trial's interval, as they are ranked: more is better."""
    assert trial.value_interval is not None
    low, high = trial.value_interval
    return (-high, -low) if trial.is_minimized else (low, high)


def _holds_its_value(trial: TrialRecord) -> bool:
    ends = trial.value_interval
    return ends is None or ends[0] <= (trial.value or 0.0) <= ends[1]


def _dominates(one: TrialRecord, other: TrialRecord) -> bool:
    ours, theirs = excess(one), excess(other)
    if ours > theirs:
        return False
    is_tie = _ties(one, other) or one.merit == other.merit
    is_higher = one.merit > other.merit
    return (is_higher or is_tie) and (ours < theirs or (is_higher and not is_tie))


def trial_rows(
    shown: Sequence[TrialRecord],
    *,
    among: Sequence[TrialRecord],
    tied: Sequence[TrialRecord],
    probe_rows: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Trials as ``best --format json`` shows them, the binding shape.

    Args:
        shown: The trials.
        among: All trials of the run, for ``pareto``.
        tied: Those that cannot be told from the best.
        probe_rows: Rows of each set that the metrics of a probe were measured on.
    """
    front, equal = ({t.number for t in of} for of in (pareto_front(among), tied))
    return [
        _row(t, is_on_front=t.number in front, is_tied=t.number in equal, probe_rows=probe_rows)
        for t in shown
    ]


def _ties(one: Judged, other: Judged) -> bool:
    return overlap(one.value_interval, other.value_interval)


def _row(
    trial: TrialRecord, *, is_on_front: bool, is_tied: bool, probe_rows: Mapping[str, int]
) -> dict[str, Any]:
    row: dict[str, Any] = finite(
        {
            "number": trial.number,
            "state": trial.state,
            "stopped_by": trial.stopped_by,
            "reason": trial.reason,
            "feasible": trial.feasible,
            "pareto": is_on_front,
            "value": trial.value,
            "params": dict(trial.params),
            "metrics": dict(trial.metrics),
            "report_metrics": dict(trial.report_metrics) if trial.report_metrics else None,
            "step": trial.step,
            "duration_s": trial.duration_s,
            "attempt": trial.attempt,
            "adapter": trial.adapter,
            "value_interval": _ends(trial.value_interval),
            "metrics_intervals": _all_ends(trial.intervals),
            "report_intervals": _all_ends(trial.report_intervals),
            "tied_with_best": is_tied,
            "reported_feasible": trial.reported_feasible,
            "probe_rows": dict(probe_rows),
            "landing_factor": trial.metrics.get("landing_factor"),
            "evaluation": dict(trial.evaluation) or None,
            "retry_of": trial.retry_of,
        }
    )
    return row


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _all_ends(intervals: Mapping[str, Interval]) -> dict[str, list[float]] | None:
    return {name: list(ends) for name, ends in intervals.items()} or None
