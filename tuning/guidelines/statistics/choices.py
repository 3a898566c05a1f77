"""Statistics of choices: which knob matters, who wins by which measure, which winners pruning and grids lose."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import harmonic_mean

import numpy as np

from tuning.guidelines.evidence import Evidence, Observed, of_unit, units
from tuning.guidelines.findings import Findings, PerUnit
from tuning.guidelines.trajectories import RATE, best_score, profile
from tuning.plots.guideline import Line, LinesData


def knob_effects(
    evidence: Evidence, *, flat: str, flat_knob: str, steep: str, steep_knob: str
) -> Findings:
    """How far the best score varies along a knob that should not matter, and its steepest step along one that should.

    Returns:
        ``spread``: largest minus smallest best score over the values of ``flat_knob`` in the sweep ``flat``;
        ``cliff``: largest change of the last score between neighbouring values of ``steep_knob`` in ``steep``, minus
        that spread. A trial that collapses has a last score of -1.
    """
    spread, cliff, steepest = {}, {}, {}
    for unit in units(evidence):
        _, scores = profile(of_unit(evidence[flat], unit), flat_knob)
        spread[unit] = max(scores) - min(scores)
        ends = _last_scores(of_unit(evidence[steep], unit), steep_knob)
        steps = [abs(b - a) for a, b in pairwise(ends)]
        steepest[unit] = max(steps)
        cliff[unit] = max(steps) - spread[unit]
    return Findings(
        effects={"spread": spread, "cliff": cliff},
        details={f"steepest step along {steep_knob}": steepest},
        figures=[
            _knob_figure(evidence[flat], flat_knob, "Best feasible score", steep=False),
            _knob_figure(evidence[steep], steep_knob, "Score at the last step", steep=True),
        ],
    )


def rank_flips(evidence: Evidence, *, parts: Sequence[str], added: str) -> Findings:
    """Whether methods are ranked otherwise once a further measure counts.

    A reading's composite is the harmonic mean of ``parts``; each method stands with the reading that is best by it.
    Then ``added`` joins the mean. A unit is a method, its number the share of the other methods against which its
    order flips: 0.5 if the two rankings had nothing to do with each other.
    """
    before, after = {}, {}
    for name, trials in evidence.items():
        readings = [r for t in trials for r in t.readings]
        chosen = max(readings, key=lambda r: harmonic_mean([r.metrics[p] for p in parts]))
        before[name] = harmonic_mean([chosen.metrics[p] for p in parts])
        after[name] = harmonic_mean([chosen.metrics[p] for p in (*parts, added)])

    def flips(one: str, other: str) -> bool:
        return (before[one] - before[other]) * (after[one] - after[other]) < 0.0

    share = {
        one: float(np.mean([flips(one, other) for other in before if other != one]))
        for one in before
    }
    orders = [sorted(by, key=lambda n: -by[n]) for by in (before, after)]
    return Findings(
        effects={"flipped pairs": share},
        details={"composite before": before, "composite after": after},
        figures=[
            LinesData(
                title=f"Place of each method without and with {added} (1 is first)",
                x_label=f"0: {' and '.join(parts)}; 1: {added} too",
                y_label="place",
                lines=tuple(
                    Line(label=n, x=(0.0, 1.0), y=tuple(float(o.index(n) + 1) for o in orders))
                    for n in orders[0]
                ),
            )
        ],
        remarks=[
            f"Order by {' and '.join(parts)}: {', '.join(orders[0])}.",
            f"Order with {added}: {', '.join(orders[1])}.",
        ],
    )


def lost_winners(evidence: Evidence, *, tight: float, loose: float) -> Findings:
    """How much larger the share of winners is that a tight pruning limit loses than that of a loose one.

    The winner of a group (a sweep, within a unit) is its best feasible reading. It is lost where an earlier reading
    of its trial has a damage above the pruning limit, so that pruning at once would have ended the trial before it,
    and no other trial is as good.

    Args:
        evidence: Trials with several readings.
        tight: Damage above which the tight rule prunes at once.
        loose: That of the loose rule.
    """
    shares: dict[float, dict[str, float]] = {tight: {}, loose: {}}
    value: dict[float, dict[str, float]] = {tight: {}, loose: {}}
    for unit in units(evidence):
        groups = [found for trials in evidence.values() if (found := of_unit(trials, unit))]
        groups = [g for g in groups if max(map(best_score, g)) > 0.0]
        for limit in (tight, loose):
            lost = [_lost(group, limit) for group in groups]
            shares[limit][unit] = float(np.mean([v > 0.0 for v in lost])) if lost else math.nan
            value[limit][unit] = float(np.mean(lost)) if lost else math.nan
    limits = sorted({tight, loose, *_between(tight, loose)})
    return Findings(
        effects={"difference": {u: shares[tight][u] - shares[loose][u] for u in shares[tight]}},
        details={
            f"share lost at {tight:g}": shares[tight],
            f"share lost at {loose:g}": shares[loose],
            f"score lost at {tight:g}": value[tight],
            f"score lost at {loose:g}": value[loose],
            "share of early offenders that recover": _recovered(evidence),
        },
        figures=[_lost_figure(evidence, limits)],
    )


def edge_hits(
    evidence: Evidence,
    *,
    margins: Mapping[str, float],
    upper_only: Sequence[str],
    ranges: Mapping[str, Sequence[float]],
) -> Findings:
    """How much more often the best rate lies at an edge of what was searched than chance would put it there.

    Chance puts every rate of a grid, or every place of a range in decades, equally often first.

    Args:
        evidence: A sweep for each study, named ``GROUP/.../METHOD``; each group is an effect of its own.
        margins: By group, the share of a range at each end that counts as edge; 0: the end of a grid.
        upper_only: Groups of which only the upper edge counts.
        ranges: Lowest and highest searched rate by method; those that occur where absent.
    """
    beyond: dict[str, dict[str, list[float]]] = {group: {} for group in margins}
    places: dict[str, dict[str, list[float]]] = {group: {} for group in margins}
    for name, trials in evidence.items():
        group, method = name.partition("/")[0], name.rpartition("/")[2]
        place, n_rates = _best_in_range(trials, ranges.get(method))
        margin, n_edges = margins[group], 1 if group in upper_only else 2
        is_hit = place >= 1.0 - margin - 1e-9 or (n_edges == 2 and place <= margin + 1e-9)
        chance = n_edges * (margin or 1.0 / n_rates)
        beyond[group].setdefault(trials[0].unit, []).append(float(is_hit) - chance)
        places[group].setdefault(method, []).append(place)
    return Findings(
        effects={
            group: {unit: float(np.mean(found)) for unit, found in by_unit.items()}
            for group, by_unit in beyond.items()
        },
        details={
            f"{group}, {method}: place of the best rate": {str(i): v for i, v in enumerate(found)}
            for group, by_method in places.items()
            for method, found in sorted(by_method.items())
        },
        figures=[_edge_figure(group, by_method) for group, by_method in places.items()],
    )


def _best_in_range(
    trials: Sequence[Observed], searched: Sequence[float] | None
) -> tuple[float, int]:
    """Place of the best rate in the range, 0 to 1 in decades, and how many rates there are."""
    rates = [float(t.params[RATE]) for t in trials]
    low, high = searched or (min(rates), max(rates))
    best = max(trials, key=lambda t: max(r.score for r in t.readings))
    return math.log(float(best.params[RATE]) / low) / math.log(high / low), len(set(rates))


def _last_scores(trials: Sequence[Observed], knob: str) -> list[float]:
    """Last score at each value of a knob, ascending; the mean where several trials share it."""
    values = sorted({float(t.params[knob]) for t in trials})
    return [
        float(np.mean([t.readings[-1].score for t in trials if float(t.params[knob]) == v]))
        for v in values
    ]


def _lost(group: Sequence[Observed], limit: float) -> float:
    """By how much the best feasible score of a group falls under pruning at once; 0 if its winner stays."""
    kept = []
    for trial in group:
        readings = []
        for reading in trial.readings:
            readings.append(reading)
            if reading.damage > limit:
                break
        kept.append(max((r.score for r in readings if trial.is_feasible(r)), default=0.0))
    return max(map(best_score, group)) - max(0.0, *kept)


def _recovered(evidence: Evidence) -> PerUnit:
    """Of the trials whose first reading breaks the limit, the share whose last one keeps it."""
    found: dict[str, list[float]] = {}
    for trials in evidence.values():
        for trial in trials:
            if len(trial.readings) > 1 and not trial.is_feasible(trial.readings[0]):
                found.setdefault(trial.unit, []).append(
                    float(trial.is_feasible(trial.readings[-1]))
                )
    return {unit: float(np.mean(of)) for unit, of in found.items()}


def _between(tight: float, loose: float) -> list[float]:
    return [tight + (loose - tight) * i / 6 for i in range(1, 6)]


def _lost_figure(evidence: Evidence, limits: Sequence[float]) -> LinesData:
    shares = []
    for limit in limits:
        lost = [
            _lost(group, limit) > 0.0
            for trials in evidence.values()
            for unit in units({"": trials})
            if max(map(best_score, group := of_unit(trials, unit))) > 0.0
        ]
        shares.append(float(np.mean(lost)) if lost else math.nan)
    return LinesData(
        title="Winners that pruning at once would have lost, by its limit",
        x_label="damage above which a trial is pruned",
        y_label="share of winners lost",
        lines=(Line(label="all groups", x=tuple(limits), y=tuple(shares)),),
    )


def _knob_figure(trials: Sequence[Observed], knob: str, y: str, *, steep: bool) -> LinesData:
    lines = []
    for unit in units({"": trials}):
        mine = of_unit(trials, unit)
        values, scores = profile(mine, knob)
        shown = _last_scores(mine, knob) if steep else scores
        lines.append(Line(label=unit, x=tuple(values), y=tuple(shown)))
    return LinesData(
        title=f"{y} by {knob}", x_label=knob, y_label=y, lines=tuple(lines), is_log=True
    )


def _edge_figure(group: str, by_method: Mapping[str, Sequence[float]]) -> LinesData:
    """Places of the best rates, the studies of each method sorted; one line for all if each method has one."""
    shown = {method: sorted(found) for method, found in sorted(by_method.items())}
    if all(len(found) == 1 for found in shown.values()):
        shown = {"one study a method": sorted(place for found in shown.values() for place in found)}
    return LinesData(
        title=f"{group}: where the best rate lies in its range (0 lower end, 1 upper end)",
        x_label="study, sorted",
        y_label="place in the range, in decades",
        lines=tuple(
            Line(label=label, x=tuple(float(i + 1) for i in range(len(found))), y=tuple(found))
            for label, found in shown.items()
        ),
    )
