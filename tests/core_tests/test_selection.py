"""Which probe counts and when a trial stops, on series made by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import PastTargetConfig, RetainGuardConfig, SelectionConfig
from core.measuring.reporting import GuardReporter, decide
from core.measuring.selection import (
    WORST_EXCESS,
    Probe,
    best_probe,
    excesses,
    guard_verdict,
    is_feasible,
    is_past_target,
    penalised_score,
    running_score,
)

GUARD = RetainGuardConfig(
    metrics=("retain_drop", "general_drop"), limit=0.1, patience=2, grace_steps=2, hard_limit=0.5
)
PAST_TARGET = PastTargetConfig(patience=2)


def selection(**changes: Any) -> SelectionConfig:
    values: dict[str, Any] = {
        "max_steps": 100,
        "constraints": [
            {"metric": "retain_drop", "at_most": 0.1},
            {"metric": "general_drop", "at_most": 0.2},
        ],
    }
    return SelectionConfig(**(values | changes))


def drops(
    retain: Sequence[float], general: Sequence[float] | None = None
) -> list[dict[str, float]]:
    other = general if general is not None else [0.0] * len(retain)
    return [{"retain_drop": r, "general_drop": g} for r, g in zip(retain, other, strict=True)]


def probe(step: int, closure: float, *, retain: float = 0.0, nll: float = 1.0) -> Probe:
    metrics = {
        "forget_closure": closure,
        "forget_nll": nll,
        "retain_drop": retain,
        "general_drop": 0.0,
    }
    return Probe(step=step, metrics=metrics, seconds=float(step))


def stops_at(series: Sequence[Mapping[str, float]], guard: RetainGuardConfig = GUARD) -> int | None:
    """Number of the first probe at which the guard stops."""
    for n in range(1, len(series) + 1):
        if guard_verdict(series[:n], guard) is not None:
            return n
    return None


# Guard


@pytest.mark.parametrize(
    ("retain", "expected"),
    [
        pytest.param([0.0] * 9, None, id="never"),
        pytest.param([0.1] * 9, None, id="at-the-limit-is-within"),
        pytest.param([0.2] * 9, 4, id="constant-violation-after-grace-and-patience"),
        pytest.param([0.2, 0.2, 0.0, 0.0, 0.0], None, id="a-dip-during-grace-is-forgiven"),
        pytest.param([0.0, 0.2, 0.2, 0.0, 0.0], None, id="grace-probes-do-not-add-to-patience"),
        pytest.param(
            [0.0, 0.0, 0.0, 0.2, 0.0, 0.2, 0.2], 7, id="patience-counts-consecutive-probes"
        ),
        pytest.param([0.2, 0.0] * 6, None, id="alternating-violations-do-not-count"),
        pytest.param([0.51], 1, id="the-hard-limit-acts-during-grace"),
        pytest.param([0.5, 0.0, 0.0], None, id="at-the-hard-limit-is-within"),
        pytest.param([0.0, 0.0, 0.0, 0.6], 4, id="the-hard-limit-needs-no-patience"),
        pytest.param([math.nan], 1, id="nan-at-once"),
        pytest.param([0.0, math.inf], 2, id="infinity-at-once"),
        pytest.param([0.0, -math.inf], 2, id="minus-infinity-at-once"),
        pytest.param([-3.0] * 9, None, id="improvement"),
    ],
)
def test_the_guard_stops_at(retain: list[float], expected: int | None) -> None:
    assert stops_at(drops(retain)) == expected
    assert stops_at(drops([0.0] * len(retain), retain)) == expected, "every watched metric counts"


def test_an_empty_series_goes_on() -> None:
    assert guard_verdict([], GUARD) is None


def test_a_metric_that_is_not_watched_does_not_count() -> None:
    guard = GUARD.model_copy(update={"metrics": ("retain_drop",)})
    assert stops_at(drops([0.0] * 9, [9.0] * 9), guard) is None


def test_without_grace_and_with_patience_one_the_first_violation_stops() -> None:
    guard = GUARD.model_copy(update={"grace_steps": 0, "patience": 1})
    assert stops_at(drops([0.0, 0.0, 0.11, 0.0]), guard) == 3


def test_the_verdict_names_metric_value_limit_and_probe() -> None:
    found = guard_verdict(drops([0.0] * 4, [0.0, 0.0, 0.3, 0.2]), GUARD)
    assert found is not None
    assert (found.stopped_by, found.metric, found.value, found.limit) == (
        "retain_guard",
        "general_drop",
        0.2,
        0.1,
    )
    assert found.reason == "general_drop = 0.200 above the limit 0.1 for 2 probes up to probe 4"
    hard = guard_verdict(drops([0.7]), GUARD)
    assert hard is not None
    assert (hard.stopped_by, hard.limit) == ("retain_guard", 0.5)
    assert hard.reason == "retain_drop = 0.700 exceeds the hard limit 0.5 at probe 1"
    diverged = guard_verdict(drops([math.nan]), GUARD)
    assert diverged is not None
    assert diverged.stopped_by == "non_finite"
    assert diverged.reason == "retain_drop is nan at probe 1: the model diverged"


guards = st.builds(
    RetainGuardConfig,
    limit=st.floats(0.0, 1.0),
    hard_limit=st.floats(1.5, 5.0),
    patience=st.integers(1, 5),
    grace_steps=st.integers(0, 5),
)


@given(guard=guards, below=st.lists(st.tuples(st.floats(-5, 1), st.floats(-5, 1)), max_size=20))
def test_the_guard_never_stops_a_series_within_the_limit(
    guard: RetainGuardConfig, below: list[tuple[float, float]]
) -> None:
    series = drops([min(r, guard.limit) for r, _ in below], [min(g, guard.limit) for _, g in below])
    assert stops_at(series, guard) is None


@given(
    guard=guards,
    above=st.floats(1e-3, 1.0),
    metric=st.sampled_from(["retain_drop", "general_drop"]),
)
def test_a_constant_violation_stops_exactly_at_grace_plus_patience(
    guard: RetainGuardConfig, above: float, metric: str
) -> None:
    value = guard.limit + above * (guard.hard_limit - guard.limit)
    calm = {"retain_drop": 0.0, "general_drop": 0.0}
    series = [calm | {metric: value}] * 20
    assert stops_at(series, guard) == guard.grace_steps + guard.patience


@given(guard=guards, series=st.lists(st.floats(-1, 1.4), max_size=15), worst=st.floats(5.01, 1e6))
def test_a_value_above_the_hard_limit_stops_wherever_it_comes(
    guard: RetainGuardConfig, series: list[float], worst: float
) -> None:
    assert guard_verdict(drops([*series, worst]), guard) is not None


def test_the_reporter_decides_as_the_verdict_does_and_leaves_step_0_out() -> None:
    chosen = selection(retain_guard=GUARD.model_dump())
    untouched = probe(0, 0.0, retain=math.nan)
    series = [probe(i, 0.1, retain=0.2) for i in range(1, 5)]
    assert not decide([untouched], chosen).stops
    reporter = GuardReporter(chosen)
    decisions = [reporter.report(p) for p in (untouched, *series)]
    assert [d.stops for d in decisions] == [False, False, False, False, True]
    assert decisions[-1].verdict == guard_verdict([p.metrics for p in series], GUARD)


def test_a_guard_that_is_switched_off_never_stops() -> None:
    reporter = GuardReporter(selection(retain_guard=None))
    assert not any(reporter.report(probe(i, 0.0, retain=9.0)).stops for i in range(1, 9))


# Which probe counts


def test_a_probe_is_feasible_up_to_and_including_the_limit() -> None:
    assert is_feasible(probe(1, 0.5, retain=0.1).metrics, selection())
    assert not is_feasible(probe(1, 0.5, retain=0.1001).metrics, selection())
    assert excesses({"retain_drop": 0.3, "general_drop": 0.1}, selection().constraints) == (
        pytest.approx({"retain_drop": 0.2, "general_drop": -0.1})
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_probe_without_a_finite_objective_is_infeasible(bad: float) -> None:
    assert not is_feasible(probe(1, bad).metrics, selection())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["retain_drop", "forget_nll"])
def test_a_diverged_model_is_infeasible_and_scored_as_the_worst(metric: str, bad: float) -> None:
    """A drop of minus infinity is no improvement, and a closure beside a cross-entropy that is NaN no success."""
    metrics = dict(probe(1, 0.5).metrics) | {metric: bad}
    assert not is_feasible(metrics, selection())
    assert penalised_score(metrics, selection()) == -1 - WORST_EXCESS


def test_the_best_feasible_probe_counts() -> None:
    series = [probe(1, 0.2), probe(2, 0.6), probe(3, 0.9, retain=0.3), probe(4, 0.5)]
    assert best_probe(series, selection()) is series[1]


def test_the_first_of_equals_counts() -> None:
    series = [probe(1, 0.6), probe(2, 0.6)]
    assert best_probe(series, selection()) is series[0]


def test_no_feasible_probe_gives_none() -> None:
    assert best_probe([probe(1, 0.9, retain=0.3)], selection()) is None
    assert best_probe([], selection()) is None


def test_the_last_probe_counts_where_that_is_the_rule_if_it_is_feasible() -> None:
    last = selection(select="last")
    series = [probe(1, 0.9), probe(2, 0.1)]
    assert best_probe(series, last) is series[1]
    assert best_probe([*series, probe(3, 0.9, retain=0.3)], last) is None


def test_the_running_score_is_the_best_feasible_objective_so_far() -> None:
    series = [
        probe(1, 0.9, retain=0.3),
        probe(2, 0.4),
        probe(3, 0.2),
        probe(4, 1.0, retain=0.6),
        probe(5, 0.7),
    ]
    found = [running_score(series[:n], selection()) for n in range(1, 6)]
    assert found == pytest.approx([-1.2, 0.4, 0.4, 0.4, 0.7])


def test_the_penalty_is_the_sum_of_the_excesses_by_hand() -> None:
    metrics = {"forget_closure": 1.0, "retain_drop": 0.4, "general_drop": 0.25}
    assert penalised_score(metrics, selection()) == pytest.approx(-1 - 0.3 - 0.05)


def test_a_non_finite_excess_costs_the_worst_or_the_hard_limit_whichever_is_larger() -> None:
    metrics = {"forget_closure": 1.0, "retain_drop": math.nan, "general_drop": math.inf}
    assert penalised_score(metrics, selection()) == -1 - 2 * WORST_EXCESS
    assert penalised_score(metrics, selection(retain_guard=None)) == -1 - 2 * WORST_EXCESS
    generous = GUARD.model_copy(update={"hard_limit": 50.0})
    assert penalised_score(metrics, selection(retain_guard=generous.model_dump())) == -1 - 2 * 50


def test_nan_never_ranks_above_a_drop_that_was_measured() -> None:
    chosen = selection()
    diverged = {"forget_closure": 0.5, "retain_drop": math.nan, "general_drop": 0.0}
    scores = [
        penalised_score(diverged | {"retain_drop": drop}, chosen) for drop in (0.2, 3.0, 9.0, 80.0)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] == pytest.approx(-1 - 2.9)
    assert penalised_score(diverged, chosen) == scores[-1] == -1 - WORST_EXCESS


def test_an_objective_that_is_no_number_costs_the_worst_excess() -> None:
    lost = {"forget_closure": math.nan, "retain_drop": 0.0, "general_drop": 0.0}
    assert penalised_score(lost, selection()) == -1 - WORST_EXCESS


def test_a_utility_is_limited_from_below_and_its_excess_is_positive_when_broken() -> None:
    chosen = selection(constraints=[{"metric": "retain_utility", "at_least": 0.95}])
    metrics = {"forget_closure": 0.5, "retain_utility": 0.90}
    assert excesses(metrics, chosen.constraints) == pytest.approx({"retain_utility": 0.05})
    assert penalised_score(metrics, chosen) == pytest.approx(-1.05)
    assert not is_feasible(metrics, chosen)
    assert is_feasible(metrics | {"retain_utility": 0.95}, chosen)
    assert not is_feasible(metrics | {"retain_utility": math.nan}, chosen)


def test_the_guard_takes_the_fall_of_a_utility_below_1() -> None:
    guard = GUARD.model_copy(update={"metrics": ("retain_utility", "general_drop"), "limit": 0.05})

    def series(*utilities: float) -> list[dict[str, float]]:
        return [{"retain_utility": u, "general_drop": 0.0} for u in utilities]

    assert stops_at(series(*[0.95] * 9), guard) is None
    assert stops_at(series(*[0.94] * 9), guard) == 4
    assert stops_at(series(1.0, 0.49), guard) == 2
    assert stops_at(series(1.2, math.nan), guard) == 2
    found = guard_verdict(series(1.0, 1.0, 0.94, 0.93), guard)
    assert found is not None
    assert (found.metric, found.value, found.limit) == ("retain_utility", 0.93, 0.95)
    assert found.reason == "retain_utility = 0.930 below the limit 0.95 for 2 probes up to probe 4"
    hard = guard_verdict(series(0.3), guard)
    assert hard is not None
    assert hard.reason == "retain_utility = 0.300 is below the hard limit 0.5 at probe 1"


anything = st.floats(allow_nan=True, allow_infinity=True)


@given(closure=st.floats(-1, 1), retain=anything, general=anything, good=st.floats(-1, 1))
def test_an_infeasible_probe_scores_below_any_feasible_one(
    closure: float, retain: float, general: float, good: float
) -> None:
    metrics = {"forget_closure": closure, "retain_drop": retain, "general_drop": general}
    if is_feasible(metrics, selection()):
        return
    score = penalised_score(metrics, selection())
    assert math.isfinite(score)
    assert score <= -1.0 <= good


# Overshoot


@pytest.mark.parametrize(
    ("closures", "nlls", "expected"),
    [
        pytest.param([0.9, 0.8, 0.7], [2.5, 3.0, 3.5], True, id="two-falling-past-the-target"),
        pytest.param([0.8, 0.7], [3.0, 3.5], False, id="too-few"),
        pytest.param([0.9, 0.8, 0.85], [2.5, 3.0, 3.5], False, id="rising-again"),
        pytest.param([0.9, 0.8, 0.8], [2.5, 3.0, 3.0], False, id="level"),
        pytest.param([0.9, 0.8, 0.7], [1.0, 1.5, 3.0], False, id="one-not-past-the-target"),
        pytest.param([0.9, 0.8, 0.7], [2.0, 2.0, 2.0], False, id="at-the-target"),
        pytest.param([0.1, 0.9, 0.8, 0.7], [1.0, 2.5, 3.0, 3.5], True, id="only-the-last-count"),
        pytest.param([0.9, 0.8, math.nan], [2.5, 3.0, math.nan], False, id="nan-is-no-overshoot"),
        pytest.param([], [], False, id="nothing"),
    ],
)
def test_a_trial_is_past_its_target(
    closures: list[float], nlls: list[float], expected: bool
) -> None:
    series = [
        probe(i, c, nll=n) for i, (c, n) in enumerate(zip(closures, nlls, strict=True), start=1)
    ]
    assert is_past_target(series, selection(), PAST_TARGET, target_nll=2.0) is expected
