"""Numbers and durations in words, by hand."""

import math

import pytest

from tuning.wording import (
    between,
    decimals,
    duration,
    heading,
    listed,
    measured,
    number,
    parameter,
    parameters,
    percent,
    score,
    signed,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(None, "–", id="missing"),
        pytest.param(0.12345, "0.123", id="three-decimals"),
        pytest.param(-0.0001, "0.000", id="no-negative-zero"),
        pytest.param(math.nan, "NaN", id="nan"),
        pytest.param(-math.inf, "-∞", id="infinite"),
        pytest.param(1.5e8, "1.5e+08", id="large"),
    ],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_ends_of_an_interval_have_two_decimals_and_those_of_a_drop_their_sign() -> None:
    assert between((0.8123, 1.0), "forget_closure") == "0.81 to 1.00"
    assert between((-0.093, 0.004), "retain_drop") == "-0.09 to 0.00"
    assert between((-0.001, 0.129), "retain_drop") == "0.00 to +0.13"
    assert between(None, "retain_drop") == ""


def test_a_metric_stands_with_its_interval_where_it_has_one() -> None:
    assert with_interval(0.91, (0.8, 0.99), "forget_closure") == "0.910 (0.80 to 0.99)"
    assert with_interval(0.1, (-0.03, 0.23), "retain_drop") == "+0.100 (-0.03 to +0.23)"
    assert with_interval(0.91, None, "forget_closure") == "0.910"


@pytest.mark.parametrize(
    ("numbers", "words"), [([3], "3"), ([3, 5], "3 and 5"), ([0, 2, 7], "0, 2 and 7"), ([], "")]
)
def test_numbers_are_listed(numbers: list[int], words: str) -> None:
    assert listed(numbers) == words


def test_drops_carry_their_sign() -> None:
    assert [signed(v) for v in (0.05, -0.05, 0.0, 0.0001, None)] == [
        "+0.050",
        "-0.050",
        "0.000",
        "0.000",
        "–",
    ]


def test_durations_are_in_words() -> None:
    assert [duration(v) for v in (8.2, 187.4, 7300, None)] == ["8 s", "3 min 7 s", "2 h 1 min", "–"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        pytest.param(0, "0 s", id="nothing"),
        pytest.param(59.6, "1 min 0 s", id="rounds-up-to-a-minute"),
        pytest.param(3600, "1 h 0 min", id="an-hour"),
        pytest.param(90_000, "25 h 0 min", id="more-than-a-day"),
        pytest.param(math.nan, "?", id="not-a-number"),
        pytest.param(None, "?", id="unknown"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert duration(seconds, unknown="?") == shown


def test_columns_of_plain_text_show_numbers_as_python_does() -> None:
    assert [decimals(v) for v in (0.12345, math.nan, math.inf, None)] == ["0.123", "nan", "inf", ""]
    assert decimals(None, missing="-") == "-"


def test_only_differences_carry_a_sign() -> None:
    assert measured(0.05, "retain_drop") == "+0.050"
    assert measured(0.05, "accuracy_gap") == "+0.050"
    assert measured(0.05, "forget_closure") == "0.050"
    assert measured(None, "retain_drop") == "–"


def test_shares_are_in_percent() -> None:
    assert [percent(v) for v in (0.5, 1.0, None, math.nan)] == ["50.0 %", "100.0 %", "–", "NaN"]


def test_scores_keep_small_numbers() -> None:
    assert [score(v) for v in (0.5, 0.0, 1e-5, "nan")] == ["0.5000", "0.0000", "1.00e-05", "nan"]


def test_parameters_are_short_and_without_their_section() -> None:
    assert parameters({"optimizer.learning_rate": 1.23456e-4, "adapter.rank": 8}) == (
        "learning_rate=0.000123 rank=8"
    )
    assert [parameter(v) for v in (1.23456e-4, 8, "nll", None)] == ["0.0001235", "8", "nll", "–"]


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        pytest.param("forget_closure", "forget\nclosure", id="closure"),
        pytest.param("forget_closure_at_utility", "forget\nclosure at utility", id="long"),
        pytest.param("forget_accuracy", "forget\naccuracy", id="level"),
        pytest.param("retain_drop", "retain\ndrop", id="drop"),
    ],
)
def test_headings_break_after_their_first_word(metric: str, shown: str) -> None:
    assert heading(metric) == shown
