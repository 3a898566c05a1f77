"""Statistics of learning rates: how wide the useful window is, where the best rate lies, how much it matters."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tuning.guidelines.evidence import Evidence, Observed, of_unit, units
from tuning.guidelines.findings import Findings, PerUnit
from tuning.guidelines.trajectories import (
    RATE,
    best_place,
    best_score,
    profile,
    values_of,
    window_decades,
    with_value,
)
from tuning.plots.guideline import Line, LinesData


def window_margin(evidence: Evidence, *, favoured: str, level: float) -> Findings:
    """By how many decades the favoured sweep's window of useful rates is wider than the widest of the others.

    A rate is useful where the best feasible score of its trials is at least ``level``. A unit in which no sweep has
    a useful rate says nothing: NaN.

    Args:
        evidence: A sweep over rates for each method.
        favoured: Name of the sweep that the claim is about.
        level: The score that is asked for.
    """
    widths = {
        name: _per_unit(trials, lambda found: window_decades(*profile(found, RATE), level=level))
        for name, trials in evidence.items()
    }
    others = {
        unit: max(width[unit] for name, width in widths.items() if name != favoured)
        for unit in units(evidence)
    }
    margin = {unit: _difference(widths[favoured][unit], other) for unit, other in others.items()}
    return Findings(
        effects={"margin": margin},
        details={f"window of {name}, decades": width for name, width in widths.items()},
        figures=[_score_figure(evidence, level)],
        remarks=_without_window(widths, level=level),
    )


def stability(evidence: Evidence, *, steady: str, unstable: str, level: float) -> Findings:
    """How much wider the steady sweep's window is, and how much less its outcomes scatter over rates.

    The scatter is the standard deviation over rates of the last score of a trial: a trial that collapses ends at -1.
    The windows of a unit in which neither sweep has a useful rate say nothing: NaN.
    """
    width, scatter = {}, {}
    for name in (steady, unstable):
        width[name] = _per_unit(
            evidence[name], lambda found: window_decades(*profile(found, RATE), level=level)
        )
        scatter[name] = _per_unit(
            evidence[name], lambda found: float(np.std([t.readings[-1].score for t in found]))
        )
    return Findings(
        effects={
            "window": {u: _difference(width[steady][u], width[unstable][u]) for u in width[steady]},
            "scatter": {u: scatter[unstable][u] - scatter[steady][u] for u in scatter[steady]},
        },
        details={f"window of {name}, decades": w for name, w in width.items()}
        | {f"scatter of {name}": s for name, s in scatter.items()},
        figures=[_score_figure(evidence, level)],
        remarks=_without_window(width, level=level),
    )


def rate_shift(evidence: Evidence, *, moved: str, controls: Sequence[str]) -> Findings:
    """Decades by which the best rate of one sweep lies above that of each control; negative if below."""
    places = {
        name: _per_unit(evidence[name], lambda found: best_place(*profile(found, RATE)))
        for name in evidence
    }
    return Findings(
        effects={
            f"against {name}": {u: places[moved][u] - places[name][u] for u in places[moved]}
            for name in controls
        },
        details={f"best rate of {name}, log10": place for name, place in places.items()},
        figures=[_score_figure(evidence, None)],
        remarks=_ends_of_grids(evidence),
    )


def rate_ratio(evidence: Evidence, *, low_rank: str, full: str, knob: str) -> Findings:
    """How the best rate of adapters compares with that of all weights, and over how many decades ranks spread it."""
    by_rank: dict[float, PerUnit] = {}
    for rank in values_of(evidence[low_rank], knob):
        at_rank = with_value(evidence[low_rank], knob, rank)
        by_rank[rank] = _per_unit(at_rank, lambda found: best_place(*profile(found, RATE)))
    of_full = _per_unit(evidence[full], lambda found: best_place(*profile(found, RATE)))
    ratio, spread = {}, {}
    for unit in of_full:
        places = [place[unit] for place in by_rank.values()]
        ratio[unit] = float(np.mean(places)) - of_full[unit]
        spread[unit] = max(places) - min(places) if all(map(math.isfinite, places)) else math.nan
    at_ranks: dict[str, Sequence[Observed]] = {
        f"rank {rank:g}": with_value(evidence[low_rank], knob, rank) for rank in by_rank
    }
    return Findings(
        effects={"ratio": ratio, "spread over ranks": spread},
        details={f"best rate at rank {rank:g}, log10": p for rank, p in by_rank.items()}
        | {f"best rate of {full}, log10": of_full},
        figures=[_score_figure(at_ranks | {full: evidence[full]}, None)],
        remarks=_ends_of_grids(evidence),
    )


def rate_dependence(evidence: Evidence) -> Findings:
    """How much less a score depends on the rate when trials stop at a budget of damage than at a fixed step.

    The dependence is the absolute rank correlation of rate and score over the trials of a sweep, a mean over sweeps.
    The fixed step is the last reading; the budget stop is the last reading before the limit is first broken, and
    the untouched model where the first one breaks it. Both are read off the same trials.
    """
    fixed, budget = {}, {}
    for unit in units(evidence):
        groups = [found for trials in evidence.values() if (found := of_unit(trials, unit))]
        fixed[unit] = float(
            np.mean([_dependence(g, lambda t: t.readings[-1].score) for g in groups])
        )
        budget[unit] = float(np.mean([_dependence(g, _within_budget) for g in groups]))
    details: dict[str, PerUnit] = {"fixed steps": fixed, "budget stop": budget}
    for name, trials in evidence.items():
        details[f"{name}, fixed steps"] = _per_unit(
            trials, lambda g: _dependence(g, lambda t: t.readings[-1].score)
        )
        details[f"{name}, budget stop"] = _per_unit(
            trials, lambda g: _dependence(g, _within_budget)
        )
    return Findings(
        effects={"difference": {u: fixed[u] - budget[u] for u in fixed}},
        details=details,
        figures=[
            _figure(
                evidence,
                lambda t: t.readings[-1].score,
                "score at the last step, mean over seeds",
                "Fixed number of steps",
            ),
            _figure(
                evidence,
                _within_budget,
                "score where the budget of damage ends, mean over seeds",
                "Stopped at a budget of damage",
            ),
        ],
    )


def _difference(window: float, other: float) -> float:
    """The first window minus the second; NaN where both are empty, for then neither method was seen to work."""
    return window - other if window > 0.0 or other > 0.0 else math.nan


def _without_window(widths: Mapping[str, PerUnit], *, level: float) -> list[str]:
    """In how many units each sweep has no useful rate at all."""
    return [
        f"{name}: in {n} of {len(width)} units no rate had a feasible score of {level:g}."
        for name, width in widths.items()
        if (n := sum(value == 0.0 for value in width.values()))
    ]


def _within_budget(trial: Observed) -> float:
    """Score of the last reading before the limit is first broken."""
    score = 0.0
    for reading in trial.readings:
        if not trial.is_feasible(reading):
            break
        score = reading.score
    return score


def _dependence(trials: Sequence[Observed], score: Callable[[Observed], float]) -> float:
    """Absolute Spearman correlation of rate and score; 0 where all scores are equal."""
    rates = _ranks([float(t.params[RATE]) for t in trials])
    scores = _ranks([score(t) for t in trials])
    if np.ptp(rates) == 0.0 or np.ptp(scores) == 0.0:
        return 0.0
    return abs(float(np.corrcoef(rates, scores)[0, 1]))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equals share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def _per_unit(
    trials: Sequence[Observed], of: Callable[[list[Observed]], float]
) -> dict[str, float]:
    return {unit: of(of_unit(trials, unit)) for unit in units({"": trials})}


def _ends_of_grids(evidence: Evidence) -> list[str]:
    """Which sweeps have their best rate at an end of the grid, where it may lie beyond."""
    found = []
    for name, trials in evidence.items():
        _, scores = profile(trials, RATE)
        if max(scores) > 0.0 and scores.index(max(scores)) in (0, len(scores) - 1):
            found.append(f"The best rate of {name} lies at an end of its grid; it may lie beyond.")
    return found


def _score_figure(evidence: Evidence, level: float | None) -> LinesData:
    data = _figure(
        evidence,
        lambda t: max(0.0, best_score(t)),
        "best feasible score, mean over seeds",
        "Best feasible score by learning rate",
    )
    if level is None:
        return data
    return LinesData(**(vars(data) | {"level": level, "level_label": f"useful from {level:g} on"}))


def _figure(
    evidence: Evidence, score: Callable[[Observed], float], y_label: str, title: str
) -> LinesData:
    lines = []
    for name, trials in evidence.items():
        rates = values_of(trials, RATE)
        means = [float(np.mean([score(t) for t in with_value(trials, RATE, r)])) for r in rates]
        lines.append(Line(label=name, x=tuple(rates), y=tuple(means)))
    return LinesData(
        title=title, x_label="learning rate", y_label=y_label, lines=tuple(lines), is_log=True
    )
