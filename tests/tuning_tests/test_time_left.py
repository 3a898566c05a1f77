"""The time that a sweep will still take, by hand."""

import pytest

from tuning.time_left import time_left_s


@pytest.mark.parametrize(
    ("durations", "waiting", "running", "at_once", "expected"),
    [
        pytest.param([10.0], 4, 0, 1, 40.0, id="one-after-the-other"),
        pytest.param([10.0], 4, 0, 2, 20.0, id="two-at-a-time"),
        pytest.param([10.0, 30.0], 3, 0, 1, 60.0, id="mean-of-those-that-ended"),
        pytest.param([10.0], 0, 2, 2, 5.0, id="running-trials-are-half-done"),
        pytest.param([10.0], 0, 0, 2, 0.0, id="nothing-left"),
        pytest.param([], 0, 0, 1, 0.0, id="nothing-to-do"),
        pytest.param([], 3, 1, 1, None, id="before-the-first-ended"),
    ],
)
def test_time_left(
    durations: list[float], waiting: int, running: int, at_once: int, expected: float | None
) -> None:
    assert time_left_s(durations, waiting=waiting, running=running, at_once=at_once) == expected
