"""Landing: the factor that is found, who may land, and what a landed trial must keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import SelectionConfig
from core.measuring.landing import (
    EVALUATIONS,
    TOLERANCE,
    keeps_the_guard,
    landing_factor,
    may_land,
    share_of_the_path,
)
from core.measuring.selection import (
    CLOSURE_AT_TARGET,
    Probe,
    StoppedBy,
    best_probe,
    drop_at_target,
    has_no_effect,
    penalised_score,
    running_score,
    worst_value,
)

BEFORE, TARGET = 1.0, 3.0


def found(level: Callable[[float], float], *, first: float = 0.7) -> tuple[float, list[float]]:
    """The landing factor of a level that is a function of the factor, and the factors that were asked for."""
    asked: list[float] = []

    def ask(factor: float) -> float:
        asked.append(factor)
        return level(factor)

    ends = {"before": BEFORE, "target": TARGET, "whole": level(1.0)}
    return landing_factor(ask, **ends, first=first), asked


def miss(level: Callable[[float], float], factor: float) -> float:
    """How far a factor is from the target, in units of the way to it."""
    return abs(level(factor) - TARGET) / (TARGET - BEFORE)


# The factor


def test_a_power_is_known_after_one_look() -> None:
    factor, asked = found(lambda c: BEFORE + 8.0 * c**2)
    assert factor == pytest.approx(0.5)
    assert asked == [0.7, factor]


def test_the_first_look_may_be_the_last() -> None:
    assert found(lambda c: BEFORE + 8.0 * c, first=0.2501) == (0.2501, [0.2501])


@settings(max_examples=200)
@given(
    power=st.floats(0.7, 5.0),
    bend=st.floats(0.0, 4.0),
    overshoot=st.floats(1.02, 5.0),
    first=st.floats(0.3, 0.95),
)
def test_a_rising_level_is_landed_in_four_looks(
    power: float, bend: float, overshoot: float, first: float
) -> None:
    def level(c: float) -> float:
        share = c**power * (math.exp(bend * c) / math.exp(bend))
        return float(BEFORE + overshoot * (TARGET - BEFORE) * share)

    factor, asked = found(level, first=first)
    assert 0.0 < factor <= 1.0
    assert len(asked) <= EVALUATIONS
    assert miss(level, factor) <= TOLERANCE


@pytest.mark.parametrize(
    "level",
    [
        pytest.param(lambda c: BEFORE - 2.0 * c + 8.0 * c**2, id="falls first"),
        pytest.param(lambda c: BEFORE + 12.0 * c * (1.4 - c), id="falls at the end"),
        pytest.param(lambda c: BEFORE + 4.0 * c + 0.6 * math.sin(12.0 * c), id="waves"),
    ],
)
def test_a_level_that_does_not_only_rise_is_landed_in_four_looks(
    level: Callable[[float], float],
) -> None:
    factor, asked = found(level)
    assert len(asked) <= EVALUATIONS
    assert miss(level, factor) <= 1.0 - CLOSURE_AT_TARGET


@settings(max_examples=100)
@given(levels=st.lists(st.floats(-5.0, 50.0), min_size=4, max_size=4))
def test_whatever_the_levels_four_looks_are_the_most_and_the_nearest_counts(
    levels: list[float],
) -> None:
    seen = {1.0: 9.0}
    answers = iter(levels)

    def ask(factor: float) -> float:
        assert 0.0 < factor < 1.0
        seen[factor] = next(answers)  # a fifth look would find none
        return seen[factor]

    factor = landing_factor(ask, before=BEFORE, target=TARGET, whole=9.0, first=0.5)
    assert abs(seen[factor] - TARGET) == min(abs(level - TARGET) for level in seen.values())


def test_a_whole_difference_on_target_is_looked_at_no_further() -> None:
    factor, asked = found(lambda c: BEFORE + 2.01 * c)
    assert (factor, asked) == (1.0, [])


def test_not_a_number_counts_as_past_the_target() -> None:
    factor, _ = found(lambda c: BEFORE + 3.2 * c if c < 0.68 or c == 1.0 else math.nan)
    assert factor < 0.68


def test_a_model_that_is_not_past_its_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"before < target < whole must hold, got .* whole=2\.5"):
        landing_factor(lambda c: c, before=BEFORE, target=TARGET, whole=2.5, first=0.5)


def test_the_first_look_is_refused_at_the_ends() -> None:
    with pytest.raises(ValueError, match=r"first must lie between 0 and 1, got 1\.0"):
        landing_factor(lambda c: c, before=BEFORE, target=TARGET, whole=9.0, first=1.0)


def test_a_path_is_on_target_between_two_probes() -> None:
    """From 2 at step 2 to 4 at step 4: at step 3 of 6."""
    path = [probe(2, 2.0, 0.0), probe(4, 4.0, 0.0), probe(6, 9.0, 0.0)]
    assert share_of_the_path(path, before=BEFORE, target=TARGET) == 0.5
    assert share_of_the_path(path[1:2], before=BEFORE, target=TARGET) == pytest.approx(2.0 / 3.0)
    with pytest.raises(ValueError, match="a probe must be past the target, got levels up to 2.0"):
        share_of_the_path(path[:1], before=BEFORE, target=TARGET)


# Who lands


GUARD = {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0}


def selection(**changes: Any) -> SelectionConfig:
    values: dict[str, Any] = {"max_steps": 10, "landing": "auto", "retain_guard": GUARD}
    values["constraints"] = [
        {"metric": "retain_drop", "at_most": 0.1},
        {"metric": "general_drop", "at_most": 0.1},
    ]
    return SelectionConfig.model_validate(values | changes)


def probe(step: int, forget: float, drop: float, stopped_by: StoppedBy | None = None) -> Probe:
    closure = max(-1.0, 1.0 - abs(forget - TARGET) / (TARGET - BEFORE))
    metrics = {
        "forget_nll": forget,
        "forget_closure": closure,
        "retain_drop": drop,
        "general_drop": 0.0,
    }
    return Probe(step=step, metrics=metrics, seconds=1.0, stopped_by=stopped_by)


def series(*values: tuple[float, float], stopped_by: StoppedBy | None = None) -> list[Probe]:
    probes = [probe(n, *value) for n, value in enumerate(values, start=1)]
    return [*probes[:-1], replace(probes[-1], stopped_by=stopped_by)]


@pytest.mark.parametrize(
    ("probes", "lands"),
    [
        pytest.param(series((2.0, 0.0), (4.0, 0.0), stopped_by="past_target"), True, id="overshot"),
        pytest.param(series((2.0, 0.0), (4.0, 0.0), stopped_by="budget"), True, id="at its end"),
        pytest.param(series((2.0, 0.0), (4.0, 0.0)), False, id="goes on"),
        pytest.param(series((2.0, 0.0), (2.9, 0.0), stopped_by="budget"), False, id="short of it"),
        pytest.param(series((3.5, 0.0), (4.0, 0.2), (5.0, 0.3)), True, id="broke the guard after"),
        pytest.param(series((3.5, 0.2), (5.0, 0.3)), True, id="broke the guard with it"),
        pytest.param(series((2.5, 0.2), (5.0, 0.3)), False, id="broke the guard before"),
        pytest.param(series((2.5, 0.2), (5.0, 0.9)), False, id="before, hard limit"),
        pytest.param(series((2.0, 0.0), (5.0, 0.9)), True, id="hard limit with it"),
        pytest.param(series((2.5, 0.2), (2.7, 0.0), (5.0, 0.9)), True, id="had recovered"),
        pytest.param(series((2.5, 0.2), (2.7, 0.2)), False, id="never reached it"),
        pytest.param(series((4.0, 0.0), (4.0, math.nan)), False, id="diverged"),
        pytest.param(series((math.nan, 0.0), stopped_by="non_finite"), False, id="no number"),
    ],
)
def test_who_may_land(probes: list[Probe], lands: bool) -> None:
    assert may_land(probes, selection(), target_nll=TARGET) is lands


def test_a_probe_left_out_counts_for_the_guard_that_ends_a_trial_which_lands() -> None:
    """Two probes of grace, one of them left out: the guard ends the trial, and it lands."""
    guard = GUARD | {"grace_steps": 2}
    probes = [probe(1, 2.0, 0.0), probe(3, 3.5, 0.2), probe(4, 5.0, 0.3)]
    thinned = [probes[0], replace(probes[1], skipped=(2,)), probes[2]]
    chosen = selection(retain_guard=guard)
    assert may_land(thinned, chosen, target_nll=TARGET)
    assert not may_land(probes, chosen, target_nll=TARGET)


def landed(drop: float, ends: Mapping[str, tuple[float, float]]) -> Probe:
    made = probe(2, TARGET, drop)
    return replace(made, metrics=dict(made.metrics) | {"landing_factor": 0.5}, intervals=ends)


def test_a_trial_that_broke_the_guard_needs_a_margin() -> None:
    broke = series((3.5, 0.2), (5.0, 0.3))
    other = {"general_drop": (-0.1, 0.05)}
    assert keeps_the_guard(landed(0.05, other | {"retain_drop": (0.01, 0.09)}), broke, selection())
    assert not keeps_the_guard(
        landed(0.05, other | {"retain_drop": (-0.01, 0.11)}), broke, selection()
    )
    assert not keeps_the_guard(landed(0.05, other), broke, selection())  # as sure as nothing


def test_a_trial_that_broke_nothing_needs_none() -> None:
    kept = series((3.5, 0.0), (5.0, 0.05), stopped_by="past_target")
    assert keeps_the_guard(landed(0.09, {"retain_drop": (-0.1, 0.3)}), kept, selection())
    assert not keeps_the_guard(landed(0.11, {}), kept, selection())
    assert keeps_the_guard(landed(0.11, {}), kept, selection(retain_guard=None))


# What it is worth


def test_a_landed_trial_is_judged_where_it_landed() -> None:
    probes = series((2.0, 0.0), (5.0, 0.05), stopped_by="past_target")
    assert best_probe(probes, selection()) is probes[0]
    assert running_score(probes, selection()) == 0.5
    on_target = landed(0.02, {})
    probes[-1] = replace(probes[-1], landed=on_target)
    assert best_probe(probes, selection()) is on_target
    assert running_score(probes, selection()) == 1.0


def test_one_that_lands_beyond_a_constraint_is_no_candidate() -> None:
    probes = series((2.0, 0.0), (5.0, 0.05), stopped_by="past_target")
    probes[-1] = replace(probes[-1], landed=landed(0.2, {}))
    assert best_probe(probes, selection()) is probes[0]


def at(closure: float, retain: float = 0.0, **others: float) -> dict[str, float]:
    return {"forget_closure": closure, "retain_drop": retain, "general_drop": -0.3, **others}


def test_the_drop_at_target_by_hand() -> None:
    chosen = selection(metric="drop_at_target")
    assert drop_at_target(at(0.99, 0.04), chosen) == 0.04
    assert drop_at_target(at(0.99, -0.4), chosen) == -0.3  # the worse of the two
    assert drop_at_target(at(0.99, 7.0), chosen) == 1.0
    assert drop_at_target(at(0.6), chosen) == 1.4
    assert drop_at_target(at(-1.0), chosen) == 3.0 == worst_value(chosen)
    assert math.isnan(drop_at_target(at(math.nan), chosen))
    floor = selection(
        metric="drop_at_target",
        retain_guard=None,
        constraints=[{"metric": "retain_utility", "at_least": 0.9}],
    )
    assert drop_at_target(at(1.0, 5.0, retain_utility=0.97), floor) == pytest.approx(0.03)


closures = st.floats(-1.0, 1.0)
drops = st.floats(-2.0, 5.0)


@given(short=st.floats(-1.0, 0.94), on=st.floats(0.95, 1.0), one=drops, other=drops)
def test_whoever_reached_the_target_is_before_whoever_did_not(
    short: float, on: float, one: float, other: float
) -> None:
    chosen = selection(metric="drop_at_target")
    assert drop_at_target(at(on, one), chosen) < drop_at_target(at(short, other), chosen)


@given(closures, closures)
def test_those_that_did_not_are_in_the_order_of_their_closures(one: float, other: float) -> None:
    chosen = selection(metric="drop_at_target")
    if one < other < 0.95:
        assert drop_at_target(at(one), chosen) >= drop_at_target(at(other), chosen)


@given(closures, drops, st.floats(0.101, 50.0))
def test_what_breaks_a_constraint_is_behind_all_that_does_not(
    closure: float, drop: float, broken: float
) -> None:
    chosen = selection(metric="drop_at_target")
    kept = at(closure, drop)
    infeasible = at(1.0, broken)
    infeasible["drop_at_target"] = drop_at_target(infeasible, chosen)
    assert penalised_score(infeasible, chosen) > drop_at_target(kept, chosen)


@given(st.floats(0.2, 3.0), st.floats(0.2, 3.0))
def test_the_further_beyond_a_constraint_the_worse(one: float, other: float) -> None:
    chosen = selection(metric="drop_at_target")
    scores = [penalised_score(at(0.5, d, drop_at_target=1.5), chosen) for d in (one, other)]
    assert (one < other) <= (scores[0] <= scores[1])


# No effect


def idle(step: int, closure: float, low: float, forget: float = 1.1) -> Probe:
    made = probe(step, forget, 0.0)
    return replace(
        made,
        metrics=dict(made.metrics) | {"forget_closure": closure},
        intervals={"forget_closure": (low, closure + 0.1)},
    )


@pytest.mark.parametrize(
    ("probes", "warmup", "expected"),
    [
        pytest.param([idle(4, 0.01, -0.05)], 0, False, id="too early"),
        pytest.param([idle(5, 0.01, -0.05)], 0, True, id="half of its steps"),
        pytest.param([idle(5, 0.2, 0.01), idle(6, 0.1, -0.1)], 0, True, id="within its noise"),
        pytest.param([idle(5, 0.2, 0.1), idle(6, 0.0, -0.1)], 0, False, id="once beyond it"),
        pytest.param([idle(6, 0.1, 0.05)], 0, False, id="small but sure"),
        pytest.param([idle(6, 0.0, -0.2, forget=5.0)], 0, False, id="overshot, closure 0 again"),
        pytest.param([idle(6, 0.0, -0.1)], 4, False, id="warm-up does not count"),
        pytest.param([idle(7, 0.0, -0.1)], 4, True, id="half of what follows the warm-up"),
        pytest.param([idle(8, 0.0, -0.1)], 10, False, id="warm-up to the end"),
        pytest.param([probe(6, 1.0, 0.0)], 0, False, id="without an interval"),
    ],
)
def test_no_effect_is_decided_by_noise_after_a_share_of_the_steps(
    probes: list[Probe], warmup: int, expected: bool
) -> None:
    chosen = selection(no_effect={"after": 0.5})
    assert chosen.no_effect is not None
    stops = has_no_effect(probes, chosen, chosen.no_effect, target_nll=TARGET, warmup_steps=warmup)
    assert stops is expected
