"""Finalists over seeds: a sweep of the same configurations with other seeds, and what it says of them.

A value of one seed is a draw: of two trials in a tie nobody can say which is better. Repeated over the same seeds,
their paired differences can.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit

from core.errors import UserError
from core.store.durable import finite
from tuning.config import Choice, SweepSpec
from tuning.files import parse_sweep
from tuning.ranking import is_candidate, ranked
from tuning.records import TrialRecord
from tuning.run import Run
from tuning.wording import parameters

SEED: Final = "seed"
AT_UTILITY: Final = "forget_closure_at_utility"

Params = tuple[tuple[str, Choice], ...]


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
        kept = [v for v in values if math.isfinite(v)]
        n = len(kept)
        if n < 2:
            mean = kept[0] if kept else math.nan
            return cls(n=n, mean=mean, deviation=math.nan, low=-math.inf, high=math.inf)
        mean, deviation = float(np.mean(kept)), float(np.std(kept, ddof=1))
        half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
        return cls(n=n, mean=mean, deviation=deviation, low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A configuration over seeds.

    Attributes:
        params: Its searched values, without the seed.
        trials: Its trials.
        kept: How many of them kept every limit at the probe that counts.
        value: The objective over the seeds that kept them.
        at_utility: ``forget_closure_at_utility`` on the reporting split over these.
        worst_drop: Mean over them of the largest excess over a limit.
        difference: Value minus that of the recommended one, seed by seed; ``None`` for itself.
    """

    params: Mapping[str, Choice]
    trials: tuple[TrialRecord, ...]
    kept: int
    value: Spread
    at_utility: Spread
    worst_drop: float
    difference: Spread | None

    @property
    def is_told_apart(self) -> bool:
        """Whether its difference from the recommended one is larger than its interval."""
        return (
            self.difference is not None and not self.difference.low <= 0.0 <= self.difference.high
        )


def repetition(run: Run, *, top: int, seeds: int) -> SweepSpec:
    """The sweep that makes the best trials of a run again, under new seeds.

    Args:
        run: The run.
        top: How many of its candidates, best first.
        seeds: How many seeds each.

    Raises:
        UserError: If no trial kept every limit, or a run of repetitions is repeated.
    """
    if SEED in run.spec.space:
        raise UserError(
            f"{run.path}: already searches over seeds; repeat the run that it came from"
        )
    best = [t for t in ranked(run.trials) if is_candidate(t)][:top]
    if not best:
        raise UserError(
            f"{run.path}: no trial kept every limit, so that there is nothing to repeat"
        )
    chosen = [run.spec.seed + 1 + i for i in range(seeds)]
    values = run.spec.plain()
    values["name"] = f"{run.name[:57]}-repeat"
    values["space"][SEED] = {"categorical": chosen, "why": "each configuration runs under each"}
    values["start_from"] = [
        {"source": f"trial {t.number} of {run.name}", "values": dict(t.params) | {SEED: seed}}
        for seed in chosen
        for t in best
    ]
    n = len(values["start_from"])
    values["budget"] |= {"trials": n, "finalists": n}
    values["pruning"]["ranking"] = "none"
    values["sampler"] = {"name": "random", "seed": run.spec.sampler.seed}
    return parse_sweep(values, where=f"the repetition of {run.path}")


def repeated(run: Run) -> list[Repeated]:
    """The configurations of a run of repetitions, the recommended one first.

    Recommended is, of those that kept every limit most often, the one with the highest mean; of those whose paired
    difference from it is within its interval, the one with the smallest mean worst drop.
    """
    groups: dict[Params, list[TrialRecord]] = {}
    for trial in run.trials:
        params = tuple((k, v) for k, v in sorted(trial.params.items()) if k != SEED)
        groups.setdefault(params, []).append(trial)
    found = [_of(dict(params), trials) for params, trials in groups.items()]
    if not found:
        return []
    most = max(one.kept for one in found)
    steady = [one for one in found if one.kept == most]
    sign = -1.0 if run.trials[0].is_minimized else 1.0
    first = max(steady, key=lambda one: sign * one.value.mean if one.value.n else -math.inf)
    tied = [
        first,
        *(one for one in steady if one is not first and not _against(one, first).is_told_apart),
    ]
    recommended = min(tied, key=lambda one: one.worst_drop if one.value.n else math.inf)
    rest = [_against(one, recommended) for one in found if one is not recommended]
    rest.sort(key=lambda one: (-one.kept, -sign * one.value.mean if one.value.n else math.inf))
    return [recommended, *rest]


def repeated_json(run: Run) -> dict[str, Any]:
    """For scripts; the recommended configuration first."""
    plain: dict[str, Any] = finite(
        {
            "run": run.name,
            "objective": run.spec.objective.metric,
            "configurations": [
                {
                    "params": dict(one.params),
                    "trials": [t.number for t in one.trials],
                    "kept_limits": one.kept,
                    "value": vars(one.value),
                    AT_UTILITY: vars(one.at_utility),
                    "worst_excess": one.worst_drop,
                    "difference": None if one.difference is None else vars(one.difference),
                    "told_apart": one.is_told_apart,
                }
                for one in repeated(run)
            ],
        }
    )
    return plain


def repeated_text(run: Run) -> Group:
    """For the terminal; the recommended configuration first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = (
        "kept\nlimits",
        "mean",
        "spread",
        "95 %\nof the mean",
        "at equal\nutility",
        "paired\ndifference",
    )
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    rows = repeated(run)
    for i, one in enumerate(rows):
        difference = one.difference
        table.add_row(
            chr(ord("A") + i) if i < 26 else str(i),
            f"{one.kept} of {len(one.trials)}",
            _number(one.value.mean),
            _number(one.value.deviation),
            _ends(one.value),
            _number(one.at_utility.mean),
            "recommended"
            if difference is None
            else f"{_ends(difference)}{'' if one.is_told_apart else ' ~'}",
        )
    lines = [f"{chr(ord('A') + i)}: {parameters(one.params)}" for i, one in enumerate(rows[:26])]
    legend = "~ cannot be told from the recommended one: 0 lies in the 95 % interval of the paired difference"
    return Group(table, *map(Text, lines), Text(legend, style="dim"))


def _of(params: Mapping[str, Choice], trials: Sequence[TrialRecord]) -> Repeated:
    kept = [t for t in trials if is_candidate(t) and t.value is not None]
    drops = [max(t.violations.values(), default=0.0) for t in kept]
    return Repeated(
        params=params,
        trials=tuple(trials),
        kept=len(kept),
        value=Spread.of([t.value or 0.0 for t in kept]),
        at_utility=Spread.of([(t.report_metrics or {}).get(AT_UTILITY, math.nan) for t in kept]),
        worst_drop=float(np.mean(drops)) if drops else math.nan,
        difference=None,
    )


def _against(one: Repeated, other: Repeated) -> Repeated:
    """The same with its paired difference from another, over the seeds at which both kept every limit."""
    ours, theirs = (
        {t.params[SEED]: t.value for t in of.trials if is_candidate(t) and t.value is not None}
        for of in (one, other)
    )
    both = [seed for seed in ours if seed in theirs]
    found = Spread.of([float(ours[s] or 0.0) - float(theirs[s] or 0.0) for s in both])
    return Repeated(**(vars(one) | {"difference": found}))


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _ends(spread: Spread) -> str:
    return f"{spread.low:+.3f} to {spread.high:+.3f}" if spread.n > 1 else "–"
