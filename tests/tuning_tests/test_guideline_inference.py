"""From units to a verdict: intervals, p-values and their correction, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tuning.guidelines.inference import (
    Compared,
    Region,
    estimate,
    held_against,
    joint_p,
    verdict,
)
from tuning.knobs import holm

ABOVE_0 = Region(low=0.0, resolution=1e-6)


def test_one_unit_says_nothing_of_its_scatter() -> None:
    found = estimate([0.7])
    assert (found.value, found.low, found.high, found.n) == (0.7, -math.inf, math.inf, 1)
    assert held_against([0.7], ABOVE_0).p_for == 1.0
    assert held_against([0.7], ABOVE_0).detectable == math.inf


def test_units_that_say_nothing_are_left_out() -> None:
    assert estimate([1.0, math.nan, 2.0, math.inf]).n == 2
    assert math.isnan(estimate([math.nan]).value)


def test_the_interval_of_three_units_is_their_range() -> None:
    found = estimate([0.1, 0.4, 0.5])
    assert (found.low, found.high) == pytest.approx((0.1, 0.5))


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [estimate(list(rng.normal(size=6))) for _ in range(200)]
    covering = np.mean([i.low <= 0.0 <= i.high for i in intervals])
    assert 0.90 <= covering <= 0.99


@pytest.mark.parametrize("values", [[0.2, 0.3, 0.25, 0.4], [-0.1, 0.3, 0.2]])
def test_p_is_student_s(values: list[float]) -> None:
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    tested = held_against(values, ABOVE_0)
    assert tested.p_for == pytest.approx(expected)
    assert tested.p_against == pytest.approx(1.0 - expected)
    below = held_against([-v for v in values], Region(high=0.0, resolution=1e-6))
    assert below.p_for == pytest.approx(expected)


def test_units_that_agree_scatter_by_the_resolution() -> None:
    coarse = held_against([0.1] * 4, Region(low=0.0, resolution=1.0))
    assert not coarse.is_inside and coarse.p_for > 0.05
    fine = held_against([0.1] * 4, Region(low=0.0, resolution=0.01))
    assert fine.is_inside and fine.p_for < 0.001


def test_between_two_ends_the_nearer_one_decides() -> None:
    values = [0.9, 1.0, 1.1, 1.3]
    tested = held_against(values, Region(low=0.5, high=1.5, resolution=1e-6))
    expected = stats.ttest_1samp(values, 1.5, alternative="less").pvalue
    assert tested.p_for == pytest.approx(expected)
    assert held_against(values, Region(low=2.0, high=3.0, resolution=1e-6)).is_outside


def test_what_could_have_been_seen_shrinks_with_the_units() -> None:
    few, many = (held_against([0.0, 1.0] * n, ABOVE_0).detectable for n in (2, 20))
    assert few > 2 * many


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03}, total=3)
    assert adjusted == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.01}, total=16) == pytest.approx({"a": 0.16})
    assert holm({"a": 0.5}, total=16) == {"a": 1.0}


def compared(values: list[float]) -> Compared:
    return held_against(values, ABOVE_0)


UP, DOWN, AROUND = (compared(v) for v in ([1.0, 1.1, 1.2], [-1.0, -1.1, -1.2], [-1.0, 0.2, 1.0]))


@pytest.mark.parametrize(
    ("effects", "p", "expected"),
    [
        pytest.param([UP, UP], 0.04, "supported", id="all-inside"),
        pytest.param([UP, AROUND], 0.04, "inconclusive", id="one-around"),
        pytest.param([UP, DOWN], 0.04, "contradicted", id="one-outside"),
        pytest.param([UP], 0.06, "inconclusive", id="lost-to-the-correction"),
        pytest.param([DOWN], 0.06, "inconclusive", id="contradiction-lost-to-the-correction"),
    ],
)
def test_the_verdict_needs_intervals_and_the_corrected_p(
    effects: list[Compared], p: float, expected: str
) -> None:
    assert verdict(effects, adjusted_p=p) == expected


def test_a_conjunction_is_as_sure_as_its_weakest_part_and_refuted_by_one() -> None:
    assert joint_p([UP, AROUND]) == pytest.approx(min(1.0, 2 * AROUND.p_for))
    assert joint_p([AROUND, DOWN]) == pytest.approx(2 * 2 * DOWN.p_against)
