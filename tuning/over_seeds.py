"""Configurations over seeds: what a repeat run says of each, which it recommends, and which trial stands for it.

A value of one seed is a draw: the highest of several is the luckiest seed, not the best trial. Compared are
configurations, by their means and by their paired differences under the same seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from core.store.durable import finite
from tuning.config import Choice, SweepSpec
from tuning.points import SEED, Params, without_seed
from tuning.ranking import is_candidate, ranked
from tuning.records import TrialRecord
from tuning.wording import NOTHING, number, parameters

AT_UTILITY: Final = "forget_closure_at_utility"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Numbers of one configuration over seeds.

    Attributes:
        n: How many.
        mean: Their mean; NaN without any.
        deviation: Their standard deviation; NaN with fewer than two.
        low: Lower end of the 95 % interval of the mean, by Student's t; minus infinity with fewer than two.
        high: Upper end.
    """

    n: int
    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of these numbers, those that are finite."""
        from scipy.special import stdtrit  # `status` of other runs does without

        kept = [v for v in values if math.isfinite(v)]
        n = len(kept)
        if n < 2:
            mean = kept[0] if kept else math.nan
            return cls(n=n, mean=mean, deviation=math.nan, low=-math.inf, high=math.inf)
        mean, deviation = statistics.fmean(kept), statistics.stdev(kept)
        half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
        return cls(n=n, mean=mean, deviation=deviation, low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A configuration over seeds.

    Attributes:
        params: Its searched values, without the seed.
        source: Where it comes from, as the sweep says it: ``trial 3 of demo``; empty if it does not.
        trials: Its trials.
        kept: How many of them kept every limit at the probe that counts.
        value: The objective over the seeds that kept them.
        at_utility: ``forget_closure_at_utility`` on the reporting split over these.
        worst_drop: Mean over them of the largest excess over a limit.
        difference: Value minus that of the recommended one, seed by seed; ``None`` for itself.
    """

    params: Mapping[str, Choice]
    source: str
    trials: tuple[TrialRecord, ...]
    kept: int
    value: Spread
    at_utility: Spread
    worst_drop: float
    difference: Spread | None

    @property
    def name(self) -> str:
        """The original trial in words; the values where it is not known."""
        return self.source or parameters(self.params)

    @property
    def is_told_apart(self) -> bool:
        """Whether its difference from the recommended one is larger than its interval."""
        return (
            self.difference is not None and not self.difference.low <= 0.0 <= self.difference.high
        )

    @property
    def representative(self) -> TrialRecord | None:
        """The repeat that stands for it: of those that kept every limit, the one with the middle value.

        Of two in the middle it is the worse one. Repeats that break a limit on the reporting split are looked at
        only where all do. The original trial would stand for it less well: it was chosen for its value, the repeats
        were not.

        Returns:
            ``None`` if no repeat kept every limit.
        """
        kept = _kept(self.trials)
        of = [t for t in kept if t.reported_feasible is not False] or kept
        of.sort(key=lambda t: (t.merit, t.number))
        return of[(len(of) - 1) // 2] if of else None


def is_repetition(spec: SweepSpec) -> bool:
    """Whether a sweep repeats configurations over seeds: it begins with each of them under two seeds or more."""
    seeds: dict[Params, set[Choice]] = {}
    for start in spec.start_from:
        if SEED not in spec.space or SEED not in start.values:
            return False
        seeds.setdefault(without_seed(start.values), set()).add(start.values[SEED])
    return bool(seeds) and all(len(of) > 1 for of in seeds.values())


def over_seeds(spec: SweepSpec, trials: Sequence[TrialRecord]) -> list[Repeated]:
    """The configurations of a run of repetitions, the recommended one first.

    Recommended is, of those that kept every limit most often, the one with the highest mean; of those whose paired
    difference from it is within its interval, the one with the smallest mean worst drop.

    Args:
        spec: Its sweep.
        trials: Its trials.
    """
    sources = {without_seed(start.values): start.source for start in spec.start_from}
    groups: dict[Params, list[TrialRecord]] = {}
    for trial in trials:
        if trial.params:  # else it waits
            groups.setdefault(without_seed(trial.params), []).append(trial)
    found = [_of(params, sources.get(params, ""), of) for params, of in groups.items()]
    if not found:
        return []
    most = max(one.kept for one in found)
    steady = [one for one in found if one.kept == most]
    sign = -1.0 if spec.objective.direction == "minimize" else 1.0
    first = max(steady, key=lambda one: sign * one.value.mean if one.value.n else -math.inf)
    tied = [
        first,
        *(one for one in steady if one is not first and not _against(one, first).is_told_apart),
    ]
    recommended = min(tied, key=lambda one: one.worst_drop if one.value.n else math.inf)
    rest = [_against(one, recommended) for one in found if one is not recommended]
    rest.sort(key=lambda one: (-one.kept, -sign * one.value.mean if one.value.n else math.inf))
    return [recommended, *rest]


def equals(repeats: Sequence[Repeated]) -> list[Repeated]:
    """The other configurations that kept every limit as often as the recommended one and cannot be told from it."""
    recommended, *others = repeats
    return [one for one in others if one.kept == recommended.kept and not one.is_told_apart]


def by_configuration(
    repeats: Sequence[Repeated], trials: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """Finished trials as the configurations stand, those within every limit first.

    Of the recommended configuration the trial that stands for it comes first; else the repeats of one keep their
    order, because their values rank seeds.
    """
    place = {t.number: i for i, one in enumerate(repeats) for t in one.trials}
    first = repeats[0].representative if repeats else None
    return sorted(
        ranked(trials),
        key=lambda t: (not is_candidate(t), place[t.number], t is not first, t.number),
    )


def repeated_rows(repeats: Sequence[Repeated]) -> list[dict[str, Any]]:
    """Configurations for scripts."""
    rows: list[dict[str, Any]] = finite(
        [
            {
                "params": dict(one.params),
                "source": one.source or None,
                "trials": [t.number for t in one.trials],
                "representative": one.representative.number if one.representative else None,
                "kept_limits": one.kept,
                "value": vars(one.value),
                AT_UTILITY: vars(one.at_utility),
                "worst_excess": one.worst_drop,
                "difference": None if one.difference is None else vars(one.difference),
                "told_apart": one.is_told_apart,
            }
            for one in repeats
        ]
    )
    return rows


def or_nothing(value: float) -> str:
    """A mean or a deviation with three decimals; a dash where there are too few numbers for one."""
    return number(value) if math.isfinite(value) else NOTHING


def ends(spread: Spread) -> str:
    """``+0.012 to +0.034``, the 95 % interval of a mean; a dash where there is none."""
    return f"{spread.low:+.3f} to {spread.high:+.3f}" if spread.n > 1 else NOTHING


def _kept(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [t for t in trials if is_candidate(t) and t.value is not None]


def _of(params: Params, source: str, trials: Sequence[TrialRecord]) -> Repeated:
    kept = _kept(trials)
    drops = [max(t.violations.values(), default=0.0) for t in kept]
    return Repeated(
        params=dict(params),
        source=source,
        trials=tuple(trials),
        kept=len(kept),
        value=Spread.of([t.value or 0.0 for t in kept]),
        at_utility=Spread.of([(t.report_metrics or {}).get(AT_UTILITY, math.nan) for t in kept]),
        worst_drop=statistics.fmean(drops) if drops else math.nan,
        difference=None,
    )


def _against(one: Repeated, other: Repeated) -> Repeated:
    """The same with its paired difference from another, over the seeds at which both kept every limit."""
    ours, theirs = ({t.params[SEED]: t.value for t in _kept(of.trials)} for of in (one, other))
    both = [seed for seed in ours if seed in theirs]
    found = Spread.of([float(ours[s] or 0.0) - float(theirs[s] or 0.0) for s in both])
    return replace(one, difference=found)
