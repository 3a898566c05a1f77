"""Which probes are left out and what that means for the rules that count probes, on series made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.config import SelectionConfig
from core.measuring.extent import GROWTH, Extent, is_overtaken, limits, reaches_nothing, watersheds
from core.measuring.history import History
from core.measuring.probing import Measurement
from core.measuring.reporting import decide
from core.measuring.selection import (
    Probe,
    best_probe,
    drop_at_target,
    guarded_series,
    running_score,
)
from core.metrics.intervals import Sums
from core.store.durable import read_lines
from tuning.committed import committed_probes

UNTOUCHED = {
    "forget_nll": 1.0,
    "forget_accuracy": 0.9,
    "forget_closure": 0.0,
    "retain_drop": 0.0,
    "general_drop": 0.0,
    "retain_utility": 1.0,
}
TARGET = {"forget_nll": 2.0, "forget_accuracy": 0.4}


def selection(**changes: Any) -> SelectionConfig:
    values: dict[str, Any] = {
        "max_steps": 100,
        "constraints": [{"metric": "retain_drop", "at_most": 0.1}],
        "retain_guard": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 2},
        "past_target": {"patience": 1},
    }
    return SelectionConfig(**(values | changes))


AT_TARGET: dict[str, Any] = {"metric": "drop_at_target", "landing": "auto"}


def probe(step: int, way: float, *, drop: float = 0.0, **more: Any) -> Probe:
    """A probe that has gone a share of the way to the target."""
    closure = 1.0 - abs(1.0 - way)
    metrics = UNTOUCHED | {
        "forget_nll": 1.0 + way,
        "forget_closure": closure,
        "retain_drop": drop,
    }
    metrics["drop_at_target"] = drop_at_target(metrics, selection(**AT_TARGET))
    metrics |= more.pop("metrics", {})
    return Probe(step=step, metrics=metrics, seconds=0.0, **more)


def foresees(probes: Sequence[Probe], rules: SelectionConfig | None = None) -> bool:
    return reaches_nothing(
        probes, rules or selection(), untouched=UNTOUCHED, target=TARGET, ahead=2
    )


# Resolving


@pytest.mark.parametrize(
    ("changes", "on_gpu", "expected"),
    [
        pytest.param({}, False, (True, True), id="cpu"),
        pytest.param({}, True, (False, True), id="gpu"),
        pytest.param({"metric": "forget_closure_at_utility"}, False, (False, False), id="utility"),
        pytest.param(
            {"stop_when": [{"metric": "el_10", "at_most": 0.1}]}, False, (True, False), id="stops"
        ),
        pytest.param(
            {"rows_per_probe": "all", "skip_probes": False}, False, (False, False), id="neither"
        ),
        pytest.param({"rows_per_probe": "adaptive"}, True, (True, True), id="asked-for-on-a-gpu"),
    ],
)
def test_auto_is_resolved_by_device_and_by_what_can_be_foreseen(
    changes: Mapping[str, Any], on_gpu: bool, expected: tuple[bool, bool]
) -> None:
    found = Extent.of(selection(**changes), on_gpu=on_gpu)
    assert (found.adaptive, found.skips) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rows_per_probe": "adaptive", "metric": "forget_closure_at_utility"},
            "rows_per_probe: forget_closure_at_utility scales .* take all or auto, got adaptive",
        ),
        (
            {"skip_probes": True, "metric": "forget_closure_at_utility"},
            "skip_probes: forget_closure_at_utility is not extrapolated.* take false or auto, got true",
        ),
        (
            {"skip_probes": True, "stop_when": [{"metric": "el_10", "at_most": 0.1}]},
            "skip_probes: a stop rule on other forget metrics is not extrapolated",
        ),
        ({"skip_probes": "never"}, "skip_probes"),
        ({"rows_per_probe": "whole"}, "'auto', 'all' or 'adaptive'"),
    ],
)
def test_what_would_miss_a_decision_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection(**changes)


def test_every_limit_is_one_at_which_something_is_decided() -> None:
    rules = selection(
        constraints=[{"metric": "retain_utility", "at_least": 0.9}],
        retain_guard={"metrics": ["retain_drop", "retain_utility"]},
    )
    assert [*limits(rules)] == [
        ("retain_utility", 0.9),
        ("retain_drop", 0.1),
        ("retain_drop", 0.5),
        ("retain_utility", 0.9),
        ("retain_utility", 0.5),
    ]


# Foresight


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        pytest.param([(0.1, 0.0)], True, id="far-after-the-first"),
        pytest.param([(0.21, 0.0)], True, id="0.21-and-3.75-times-as-much-is-0.9975"),
        pytest.param([(0.22, 0.0)], False, id="0.22-and-3.75-times-as-much-is-1.045"),
        pytest.param([(0.4, 0.0), (0.5, 0.0)], True, id="the-last-increase-counts"),
        pytest.param([(0.4, 0.0), (0.6, 0.0)], False, id="too-near-the-target"),
        pytest.param([(0.4, 0.0), (0.3, 0.0)], True, id="falling-back"),
        pytest.param([(0.1, 0.0), (0.2, 0.02)], True, id="the-drop-0.02-becomes-0.095"),
        pytest.param([(0.1, 0.0), (0.2, 0.03)], False, id="the-drop-0.03-becomes-0.1425"),
        pytest.param([(0.1, 0.011)], True, id="a-first-drop-of-0.011-becomes-0.099"),
        pytest.param([(0.1, 0.012)], False, id="a-first-drop-of-0.012-becomes-0.108"),
        pytest.param([(0.1, -0.3), (0.2, -0.2)], False, id="a-drop-below-0-that-rises"),
        pytest.param([(0.1, 0.3), (0.2, 0.2)], False, id="a-broken-limit-though-falling"),
        pytest.param([(1.2, 0.0), (1.1, 0.0)], False, id="past-the-target-though-coming-back"),
        pytest.param([(math.nan, 0.0)], False, id="nan"),
        pytest.param([(-math.inf, 0.0)], False, id="minus-infinity"),
        pytest.param([(0.1, math.nan)], False, id="nan-of-a-drop"),
    ],
)
def test_a_probe_decides_nothing_where_two_larger_increases_reach_nothing(
    series: Sequence[tuple[float, float]], expected: bool
) -> None:
    probes = [probe(i, way, drop=drop) for i, (way, drop) in enumerate(series, start=1)]
    assert foresees(probes) is expected


def test_after_a_probe_left_out_the_last_increase_is_the_larger_part_of_two() -> None:
    """0.2 over two probes is at most 0.12 in the last one: 0.5 + 3.75 * 0.12 = 0.95."""
    assert foresees([probe(1, 0.3), probe(3, 0.5, skipped=(2,))])
    assert not foresees([probe(1, 0.3), probe(3, 0.53, skipped=(2,))])
    assert not foresees([probe(1, 0.3), probe(2, 0.5)])


def test_a_utility_falls_to_its_limit_and_accuracy_to_its_target() -> None:
    utility = selection(
        constraints=[{"metric": "retain_utility", "at_least": 0.9}], retain_guard=None
    )
    for now, expected in ((0.98, True), (0.97, False)):
        series = [probe(1, 0.1), probe(2, 0.2, metrics={"retain_utility": now})]
        assert foresees(series, utility) is expected
    accuracy = selection(metric="accuracy_closure")
    for now, expected in ((0.81, True), (0.79, False)):
        found = [probe(1, 0.1, metrics={"forget_accuracy": now})]
        assert foresees(found, accuracy) is expected
        assert foresees(found)


@given(
    increases=st.lists(st.floats(0.001, 0.2), min_size=1, max_size=4),
    growth=st.tuples(st.floats(0.0, GROWTH), st.floats(0.0, GROWTH)),
    drop=st.floats(0.0, 0.05),
)
def test_a_trial_that_grows_no_faster_reaches_nothing_by_the_next_two_probes(
    increases: list[float], growth: tuple[float, float], drop: float
) -> None:
    ways, drops = np.cumsum(increases), drop * np.arange(1, len(increases) + 1)
    probes = [
        probe(i, float(w), drop=float(d))
        for i, (w, d) in enumerate(zip(ways, drops, strict=True), start=1)
    ]
    assume(foresees(probes))
    first = growth[0] * increases[-1]
    second = growth[1] * first
    assert ways[-1] + first <= ways[-1] + first + second < 1.0
    assert drops[-1] + (growth[0] + growth[0] * growth[1]) * drop < 0.1


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        pytest.param([(0.39, 0.0)], True, id="0.39-and-1.5-times-as-much-is-0.975"),
        pytest.param([(0.41, 0.0)], False, id="0.41-and-1.5-times-as-much-is-1.025"),
        pytest.param([(0.3, 0.0), (0.31, 0.0)], False, id="hardly-rising"),
        pytest.param([(0.3, 0.0), (0.2, 0.0)], False, id="falling"),
        pytest.param([(0.3, 0.0), (0.4, 0.05)], False, id="the-drop-0.05-may-become-0.24"),
        pytest.param([(0.3, -0.09), (0.4, -0.03)], False, id="a-drop-below-0-that-bends-up"),
        pytest.param([(0.3, 0.0), (0.4, 0.2)], False, id="a-broken-limit"),
        pytest.param([(0.3, 0.011)], True, id="a-first-drop-of-0.011-becomes-0.099"),
        pytest.param([(0.3, 0.012)], False, id="a-first-drop-of-0.012-becomes-0.108"),
        pytest.param([(0.3, math.nan)], False, id="nan"),
    ],
)
def test_a_probe_is_overtaken_where_one_larger_increase_is_short_of_the_target_and_damage_is_far(
    series: Sequence[tuple[float, float]], expected: bool
) -> None:
    probes = [probe(i, way, drop=drop) for i, (way, drop) in enumerate(series, start=1)]
    ends = {"untouched": UNTOUCHED, "target": TARGET}
    assert is_overtaken(probes, selection(), **ends) is expected
    assert not is_overtaken(probes, selection(select="last", past_target=None), **ends)


def test_on_the_way_to_a_drop_at_target_the_closure_rises_until_a_damage_counts() -> None:
    """From 0.95 of the way on the later probe is not the better one: there it is the one with more damage."""
    drops, ends = selection(**AT_TARGET), {"untouched": UNTOUCHED, "target": TARGET}
    for way, closure, drop in ((0.19, True, True), (0.205, True, False)):
        assert foresees([probe(1, way)]) is closure, "4.75 times as far"
        assert foresees([probe(1, way)], drops) is drop
    for way, closure, drop in ((0.37, True, True), (0.39, True, False)):
        assert is_overtaken([probe(1, way)], selection(), **ends) is closure, "2.5 times as far"
        assert is_overtaken([probe(1, way)], drops, **ends) is drop
    assert not is_overtaken([probe(1, 0.93), probe(2, 0.96)], drops, **ends)


@pytest.mark.parametrize("n_before", [0, 1, 2])
@pytest.mark.parametrize("skipped", [(), (9,)])
@given(then=st.floats(-0.3, 0.09), now=st.floats(-0.3, 0.2))
def test_foresight_about_a_damage_turns_at_its_watershed(
    n_before: int, skipped: tuple[int, ...], then: float, now: float
) -> None:
    rules = selection(retain_guard=None)
    before = [probe(i, 0.0, drop=then) for i in range(n_before)]
    untouched = UNTOUCHED | ({} if before else {"retain_drop": then})
    found = watersheds(before, rules, untouched=untouched, after_skip=bool(skipped))
    [(metric, value)] = found
    assert metric == "retain_drop"
    series = [*before, probe(10, 0.0, drop=now, skipped=skipped)]
    assume(abs(now - value) > 1e-9)
    for ahead in (1, 2):
        calm = reaches_nothing(series, rules, untouched=untouched, target=TARGET, ahead=ahead)
        assert calm is (now < value)


def test_a_probe_that_was_overtaken_never_counts_but_is_among_what_pruners_see() -> None:
    series = [probe(1, 0.2), probe(2, 0.5, is_overtaken=True)]
    assert best_probe(series, selection()) is series[0]
    assert best_probe(series[1:], selection()) is None
    assert running_score(series, selection()) == 0.5


# Rules that count probes


def test_a_probe_left_out_counts_as_the_one_before_it() -> None:
    series = guarded_series([probe(1, 0.1), probe(2, 0.2, drop=0.05), probe(4, 0.3, skipped=(3,))])
    assert [*series] == [1, 2, 3, 4]
    assert series[3] == series[2]


@given(
    drops=st.lists(st.floats(0.0, 0.3), min_size=3, max_size=12),
    grace=st.integers(0, 4),
    patience=st.integers(1, 4),
)
def test_the_guard_stops_at_the_same_probe_as_if_all_had_been_measured(
    drops: list[float], grace: int, patience: int
) -> None:
    """Whatever was left out kept its limits, as the rule foresees."""
    guard = {"limit": 0.1, "hard_limit": 0.5, "patience": patience, "grace_steps": grace}
    rules = selection(retain_guard=guard)
    whole = [probe(i, 0.1, drop=drop) for i, drop in enumerate(drops, start=1)]
    thinned: list[Probe] = []
    left_out: tuple[int, ...] = ()
    for i, one in enumerate(whole):
        kept = i > 0 and all(p.metrics["retain_drop"] <= 0.1 for p in whole[i - 1 : i + 1])
        if kept and not left_out and i + 1 < len(whole):
            left_out = (one.step,)
            assert not decide(whole[: i + 1], rules).stops
            continue
        thinned.append(probe(one.step, 0.1, drop=drops[i], skipped=left_out))
        left_out = ()
        found, expected = decide(thinned, rules), decide(whole[: i + 1], rules)
        assert found == expected
        if expected.stops:
            return


# The history


def sums(nll: float) -> Sums:
    return np.array([[10 * nll, 5.0, 10.0], [20 * nll, 5.0, 20.0]])


BEFORE = {
    "forget": sums(1.0),
    "retain": sums(3.0),
    "general": sums(3.0),
    "target": sums(2.0),
    "unseen": sums(3.0),
}


def measured(
    way: float, *, drop: float = 0.0, whole: bool = True, noise: float | None = None
) -> Measurement:
    return Measurement(
        metrics=probe(1, way, drop=drop).metrics,
        intervals={} if noise is None else {"forget_closure": (way - noise, way + noise)},
        n_rows={"forget": 2, "retain": 2 if whole else 1, "general": 2},
        sums={n: BEFORE[n] for n in ("forget", "retain", "general")} if whole else {},
    )


def history(rules: SelectionConfig, *, folder: Path | None = None, skips: bool = True) -> History:
    return History(rules, BEFORE, folder, extent=Extent(adaptive=True, skips=skips), started=0.0)


def test_the_first_probe_is_never_left_out_nor_two_in_a_row() -> None:
    found = history(selection())
    assert not found.leaves_out(1)
    found.judge(1, measured(0.1), is_last=False)
    assert found.leaves_out(2)
    assert not found.leaves_out(3)
    assert found.judge(3, measured(0.2), is_last=False).skipped == (2,)
    assert found.leaves_out(4)


def test_nothing_is_left_out_where_that_is_switched_off() -> None:
    found = history(selection(), skips=False)
    found.judge(1, measured(0.1), is_last=False)
    assert not found.leaves_out(2)


@pytest.mark.parametrize(("warmup", "after"), [(0, 0.5), (1, 0.5), (4, 0.25), (3, 0.8)])
def test_a_trial_without_effect_ends_where_it_would_with_every_probe(
    warmup: int, after: float
) -> None:
    rules = selection(max_steps=12, no_effect={"after": after})
    ends: dict[bool, int] = {}
    for skips in (False, True):
        found = History(
            rules,
            BEFORE,
            None,
            extent=Extent(adaptive=True, skips=skips),
            started=0.0,
            warmup_steps=warmup,
        )
        for step in range(1, 13):
            if found.leaves_out(step):
                continue
            judged = found.judge(step, measured(0.01, noise=0.1), is_last=False)
            if judged.stopped_by is not None:
                assert judged.stopped_by == "no_effect"
                ends[skips] = step
                break
    assert ends[True] == ends[False] < 12
    assert len(found.probes) < ends[True]


def test_after_an_effect_probes_are_left_out_as_before() -> None:
    found = history(selection(max_steps=8, no_effect={"after": 0.5}))
    found.judge(3, measured(0.2, noise=0.01), is_last=False)
    assert found.leaves_out(4)


def test_where_a_drop_at_target_is_a_damage_all_rows_are_needed() -> None:
    found = history(selection(**AT_TARGET), skips=False)
    found.judge(1, measured(0.97), is_last=False)
    for way, drop, expected in ((0.96, 0.05, True), (0.96, 0.2, True), (0.94, 0.0, False)):
        assert found.decides(2, measured(way, drop=drop)) is expected


def test_what_a_trial_landed_on_has_all_rows_and_counts(tmp_path: Path) -> None:
    found = history(selection(landing="auto"), folder=tmp_path)
    found.judge(1, measured(0.1), is_last=False)
    assert found.leaves_out(2)
    assert found.judge(3, measured(0.3, whole=False), is_last=False).is_overtaken
    assert not found.judge(4, measured(1.4), is_last=True).is_overtaken
    assert found.may_land
    landed = found.land(measured(0.99))
    assert landed.landed is not None and not landed.landed.is_overtaken
    assert landed.landed.n_rows == {"forget": 2, "retain": 2, "general": 2}
    assert found.is_best(landed) and found.best is landed.landed
    found.commit(landed)
    assert committed_probes(tmp_path) == [landed]


def test_a_probe_that_would_be_the_best_or_end_the_trial_needs_all_rows() -> None:
    found = history(selection())
    assert found.decides(1, measured(0.5))
    found.judge(1, measured(0.5), is_last=False)
    assert not found.decides(2, measured(0.4))
    assert not found.decides(2, measured(0.8, drop=0.2)), "infeasible, and within patience"
    assert found.decides(2, measured(0.8, drop=0.6)), "the hard limit"
    assert found.decides(2, measured(1.9)), "past its target"
    assert found.decides(2, measured(math.nan)), "diverged"
    assert found.decides(2, measured(0.8)), "asking judges nothing"


def test_a_probe_that_the_next_one_betters_needs_no_more_rows_and_is_not_the_best() -> None:
    found = history(selection())
    assert not found.decides(1, measured(0.3))
    early = found.judge(1, measured(0.3), is_last=False)
    assert early.is_overtaken
    assert not found.is_best(early)
    late = found.judge(2, measured(0.7), is_last=False)
    assert not late.is_overtaken
    assert found.is_best(late)
    assert history(selection(), skips=False).decides(1, measured(0.3))
    assert not history(selection()).judge(1, measured(0.3), is_last=True).is_overtaken


def test_where_the_last_probe_counts_only_an_end_needs_all_rows() -> None:
    found = history(selection(select="last", past_target=None))
    assert not found.decides(1, measured(0.1))
    assert found.decides(1, measured(0.1, drop=0.6))


def test_the_history_says_how_much_was_measured_and_has_the_rows_of_whole_probes_only(
    tmp_path: Path,
) -> None:
    found = history(selection(), folder=tmp_path)
    found.begin(initial_rms=(1.0, 0.0), base_checksum="-")
    found.commit(found.judge(1, measured(0.1), is_last=False))
    assert found.leaves_out(2)
    found.commit(found.judge(3, measured(0.05, whole=False), is_last=False))
    found.commit(found.judge(4, measured(0.9), is_last=False))
    first, *lines = read_lines(tmp_path / "history.jsonl")
    assert first["extent"] == {"adaptive": True, "skips": True}
    assert [line["skipped"] for line in lines] == [[], [2], []]
    assert [line["is_overtaken"] for line in lines] == [True, False, False]
    assert [line["n_rows"]["retain"] for line in lines] == [2, 1, 2]
    assert ["rows" in line for line in lines] == [True, False, True]
