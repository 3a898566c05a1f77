"""What is read off trials, and every statistic of a guideline, on trials whose answer is known."""

from __future__ import annotations

import math

import pytest
from guideline_trials import RATES, over_rates, trial

from tuning.guidelines.evidence import Observed, judged_by
from tuning.guidelines.findings import Findings
from tuning.guidelines.statistics import STATISTICS
from tuning.guidelines.trajectories import (
    RATE,
    best_place,
    best_score,
    crossing,
    damage_at,
    profile,
    step_at,
    window_decades,
)


def value(findings: Findings, name: str) -> float:
    """The number of an effect, which is the same in all units."""
    (found,) = set(findings.effects[name].values())
    return found


# Trajectories


def test_the_best_score_is_feasible_and_never_below_that_of_doing_nothing() -> None:
    assert best_score(trial([0.3, 0.9, 0.5], [0.0, 0.2, 0.1])) == 0.5
    assert best_score(trial([0.9], [0.2])) == 0.0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param([0.6, 0.7, 0.9], 2.0, id="everywhere"),
        pytest.param([0.0, 0.2, 0.4], 0.0, id="nowhere"),
        pytest.param([0.0, 1.0, 0.0], 1.0, id="half-of-each-side"),
        pytest.param([0.4, 0.9, 0.9], 1.8, id="from-a-fifth-on"),
        pytest.param([0.5, 0.5, 0.0], 1.0, id="at-the-level"),
    ],
)
def test_a_window_is_measured_in_decades(scores: list[float], expected: float) -> None:
    assert window_decades(RATES, scores, level=0.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param([0.2, 0.8, 0.2], -3.0, id="symmetric"),
        pytest.param([0.0, 0.9, 0.5], -3.0 + 0.5 * (0.9 - 0.4) / (0.9 + 0.4), id="leans-up"),
        pytest.param([0.1, 0.2, 0.9], -2.0, id="at-the-end"),
        pytest.param([0.0, 0.0, 0.0], math.nan, id="nothing-forgets"),
    ],
)
def test_the_best_rate_lies_at_the_vertex(scores: list[float], expected: float) -> None:
    assert best_place(RATES, scores) == pytest.approx(expected, nan_ok=True)


def test_a_level_is_crossed_on_the_line_between_readings() -> None:
    found = crossing(trial([0.2, 0.6], [0.0, 0.4]), 0.5)
    assert found is not None and found.damage == pytest.approx(0.3)
    assert crossing(trial([0.2, 0.4]), 0.5) is None
    one = [trial([1.0], [0.4]), trial([0.5], [0.1])]
    assert damage_at(one, 0.5, cap=1.0) == pytest.approx(0.1)
    assert damage_at(one, 0.25, cap=1.0) == pytest.approx(0.05)
    assert damage_at([trial([0.1])], 0.5, cap=1.0) == 1.0


def test_steps_count_within_the_limit_only() -> None:
    fast, slow = trial([1.0], [0.8]), trial([0.25, 0.5, 0.75])
    assert step_at([fast, slow], 0.5, cap=9.0) == pytest.approx(2.0)
    assert step_at([fast], 0.5, cap=9.0) == 9.0


def test_a_profile_takes_the_best_trial_at_each_value() -> None:
    trials = [trial([s], at={"adapter.rank": r}) for r, s in ((4, 0.2), (4, 0.5), (8, -0.3))]
    assert profile(trials, "adapter.rank") == ([4.0, 8.0], [0.5, 0.0])


# Statistics


def peak(at: float, height: float = 1.0) -> list[Observed]:
    """A sweep whose best rate is ``at``; two thirds of its height are lost in a decade."""
    return over_rates(lambda rate: ([max(0.0, height - 0.66 * abs(math.log10(rate / at)))], [0.0]))


def test_window_margin_is_against_the_widest_other() -> None:
    wide, narrow = over_rates(lambda _: ([0.9], [0.0])), peak(1e-3)
    found = STATISTICS["window_margin"](
        {"wide": wide, "narrow": narrow}, favoured="wide", level=0.5
    )
    width = 2 * 0.5 / 0.66
    assert value(found, "margin") == pytest.approx(2.0 - width)


def test_stability_sees_window_and_scatter() -> None:
    steady = over_rates(lambda _: ([0.9], [0.0]))
    unstable = over_rates(lambda rate: ([0.9 if rate < 5e-3 else -1.0], [0.0]))
    found = STATISTICS["stability"](
        {"a": steady, "b": unstable}, steady="a", unstable="b", level=0.5
    )
    assert value(found, "window") == pytest.approx(2.0 - (1.0 + 0.4 / 0.9))
    assert value(found, "scatter") == pytest.approx(1.9 * math.sqrt(2) / 3)


def test_rate_shift_is_in_decades() -> None:
    found = STATISTICS["rate_shift"](
        {"low": peak(1e-4), "high": peak(1e-3)}, moved="low", controls=["high"]
    )
    assert value(found, "against high") == pytest.approx(-1.0)
    assert found.remarks == ["The best rate of low lies at an end of its grid; it may lie beyond."]


def test_rate_ratio_is_a_mean_over_ranks_and_their_spread() -> None:
    def ranked(at: float, rank: int) -> list[Observed]:
        return over_rates(
            lambda rate: ([1.0 - 0.3 * abs(math.log10(rate / at))], [0.0]),
            at={"adapter.rank": rank},
        )

    evidence = {"adapters": ranked(1e-3, 4) + ranked(1e-2, 64), "all": peak(1e-4)}
    found = STATISTICS["rate_ratio"](evidence, low_rank="adapters", full="all", knob="adapter.rank")
    assert value(found, "ratio") == pytest.approx(1.5)
    assert value(found, "spread over ranks") == pytest.approx(1.0)


def test_a_budget_stop_that_lands_everywhere_alike_takes_the_rate_out() -> None:
    trials = over_rates(lambda rate: ([0.5, 1.0 - 100 * rate], [0.0, 1.0]))
    found = STATISTICS["rate_dependence"]({"ga": trials})
    assert value(found, "difference") == pytest.approx(1.0)
    assert set(found.details["budget stop"].values()) == {0.0}


def test_damage_is_compared_at_equal_forgetting_and_at_the_best_rate() -> None:
    worse = over_rates(lambda rate: ([0.5], [0.3 if rate < 5e-3 else 0.9]))
    better = over_rates(lambda _: ([1.0], [0.2]))
    evidence = {"worse": worse, "better": better}
    found = STATISTICS["damage_difference"](
        evidence, pairs=[["worse", "better"]], level=0.5, cap=1.0
    )
    assert value(found, "difference") == pytest.approx(0.3 - 0.1)


def test_one_metric_can_be_the_damage() -> None:
    reading = judged_by({"a": [trial([0.5], [0.2])]}, "forget_nll")["a"][0].readings[0]
    assert reading.damage == 2.0


def test_low_rank_damage_is_a_mean_over_ranks() -> None:
    low = [trial([0.5], [d], at={"adapter.rank": r}) for r, d in ((4, 0.4), (8, 0.2))]
    evidence = {"low": low, "full": [trial([0.5], [0.1])]}
    found = STATISTICS["low_rank_damage"](
        evidence, low_rank="low", full="full", knob="adapter.rank", level=0.5, cap=1.0
    )
    assert value(found, "difference") == pytest.approx(0.2)


def test_after_the_target_counts_from_the_crossing_on() -> None:
    past = trial([0.5, 0.8, 0.2], [0.0, 0.1, 0.5], target_nll=3.0)  # 4 * 0.8 is past 3
    never = trial([0.1, 0.2, 0.3], target_nll=3.0)
    found = STATISTICS["after_the_target"]({"ga": [past, never]})
    assert value(found, "score lost") == pytest.approx(0.6)
    assert value(found, "damage done") == pytest.approx(0.4)
    assert found.details["first crossing of ga, step"] == {"seed 0": 2.0}


def test_slow_but_gentle_is_against_the_slowest_and_the_gentlest_other() -> None:
    evidence = {
        "ihl": [trial([0.25, 0.5], [0.0, 0.0])],
        "ga": [trial([0.5], [0.1])],
        "npo": [trial([0.5], [0.05])],
    }
    found = STATISTICS["slow_but_gentle"](evidence, slow="ihl", level=0.5, cap=1.0, most_steps=9.0)
    assert value(found, "steps") == pytest.approx(1.0)
    assert value(found, "damage") == pytest.approx(0.05)


def test_cost_is_a_ratio_of_tokens() -> None:
    trials = [trial([0.2, 0.9, 0.4]), trial([0.1])]
    found = STATISTICS["cost_ratio"]({"a": trials}, chosen="a", pretraining_tokens=2e9)
    assert value(found, "chosen trial") == pytest.approx(6.0)  # two steps of 1000 tokens
    whole = found.details["all trials of a seed, log10"]["seed 0"]
    assert whole == pytest.approx(math.log10(2e9 / 4000))


def test_a_speed_up_of_two_is_one() -> None:
    evidence = {"fila": [trial([0.5])], "lora": [trial([0.25, 0.5])], "svd": [trial([0.1])]}
    found = STATISTICS["speed_up"](
        evidence, favoured="fila", controls=["lora", "svd"], level=0.5, most_steps=8.0
    )
    assert value(found, "over lora") == pytest.approx(1.0)
    assert value(found, "over svd") == pytest.approx(3.0)
    assert found.remarks == ["svd: in 1 of 1 units no trial got there; 8 steps are taken."]


def test_knob_effects_are_a_spread_and_a_cliff() -> None:
    ranks = [trial([s], at={"adapter.rank": r}) for r, s in ((4, 0.7), (8, 0.8), (16, 0.75))]
    weights = [
        trial([s], at={"method.retain_weight": w}) for w, s in ((0.1, -1.0), (1.0, 0.6), (9.0, 0.1))
    ]
    found = STATISTICS["knob_effects"](
        {"r": ranks, "w": weights},
        flat="r",
        flat_knob="adapter.rank",
        steep="w",
        steep_knob="method.retain_weight",
    )
    assert value(found, "spread") == pytest.approx(0.1)
    assert value(found, "cliff") == pytest.approx(1.6 - 0.1)


def test_a_tight_limit_loses_a_winner_that_recovers() -> None:
    recovers, steady = trial([0.5, 0.9], [0.2, 0.05]), trial([0.4, 0.6], [0.0, 0.0])
    found = STATISTICS["lost_winners"]({"a": [recovers, steady]}, tight=0.1, loose=0.4)
    assert value(found, "difference") == 1.0
    assert found.details["score lost at 0.1"]["seed 0"] == pytest.approx(0.3)
    assert found.details["share of early offenders that recover"] == {"seed 0": 1.0}


def test_a_winner_before_its_offence_is_not_lost() -> None:
    found = STATISTICS["lost_winners"]({"a": [trial([0.9, 0.2], [0.0, 0.3])]}, tight=0.1, loose=0.4)
    assert value(found, "difference") == 0.0


@pytest.mark.parametrize(
    ("best", "upper_only", "expected"),
    [
        pytest.param(1e-2, [], 1 - 2 / 3, id="top"),
        pytest.param(1e-4, [], 1 - 2 / 3, id="bottom"),
        pytest.param(1e-4, ["g"], -1 / 3, id="bottom-does-not-count"),
        pytest.param(1e-3, [], -2 / 3, id="inside"),
    ],
)
def test_edge_hits_are_counted_beyond_chance(
    best: float, upper_only: list[str], expected: float
) -> None:
    found = STATISTICS["edge_hits"](
        {"g/m": peak(best)}, margins={"g": 0.0}, upper_only=upper_only, ranges={}
    )
    assert value(found, "g") == pytest.approx(expected)


def test_the_edge_of_a_range_has_a_width() -> None:
    trials = [trial([1.0], at={RATE: 9e-3}), trial([0.5], at={RATE: 1e-3})]
    found = STATISTICS["edge_hits"](
        {"g/m": trials}, margins={"g": 0.1}, upper_only=[], ranges={"m": [1e-4, 1e-2]}
    )
    assert value(found, "g") == pytest.approx(1 - 0.2)


def test_a_ranking_flips_pair_by_pair() -> None:
    def method(memorisation: float, utility: float, privacy: float) -> list[Observed]:
        made = trial([0.5])
        parts = {"memorisation": memorisation, "utility": utility, "privacy": privacy}
        made.readings[0].metrics.update(parts)  # type: ignore[attr-defined]
        return [made]

    evidence = {"a": method(0.9, 0.9, 0.01), "b": method(0.6, 0.6, 0.9), "c": method(0.2, 0.2, 0.9)}
    found = STATISTICS["rank_flips"](evidence, parts=["memorisation", "utility"], added="privacy")
    assert found.effects["flipped pairs"] == {"a": 1.0, "b": 0.5, "c": 0.5}
