"""Drops from a part of a set's rows: against hand figures, every sample of a small set, and rows drawn at random."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import ConstraintMetric, SelectionConfig
from core.measuring.extent import limits
from core.measuring.staged import Place, Reading, bounds
from core.metrics.intervals import Sums
from core.metrics.nested import (
    CORRECT,
    decides,
    drop_interval,
    estimated_level,
    nested_order,
    next_size,
)
from core.metrics.probes import MEASURED, Level, degradation, level

# Order and sizes


def test_the_order_holds_every_row_once_and_the_rows_alone_determine_it() -> None:
    found = nested_order(30, "a1")
    assert sorted(found) == list(range(30))
    assert nested_order(30, "a1") == found
    assert nested_order(30, "b2") != found
    assert found != tuple(range(30))


@pytest.mark.parametrize(
    ("n_rows", "expected"),
    [
        pytest.param(3, [3], id="fewer-than-the-first-stage"),
        pytest.param(5, [5], id="a-small-remainder-is-taken-along"),
        pytest.param(20, [4, 8, 20], id="so-is-a-larger-one-later"),
        pytest.param(48, [4, 8, 16, 28, 48], id="the-demo-s"),
        pytest.param(200, [4, 8, 16, 28, 48, 80, 133, 200], id="beyond-the-list"),
    ],
)
def test_rows_are_read_in_stages_that_grow(n_rows: int, expected: list[int]) -> None:
    found = [0]
    while found[-1] < n_rows:
        found.append(next_size(found[-1], n_rows))
    assert found[1:] == expected


# Intervals


def rows(nll: Sequence[float], *, tokens: Sequence[float], correct: float = 0.0) -> Sums:
    """Row sums with these summed log-likelihoods."""
    return np.array([[x, correct, t] for x, t in zip(nll, tokens, strict=True)], dtype=np.float64)


def test_an_interval_by_hand() -> None:
    """Changes 1, 3 over 10, 10 tokens of 4 rows: 0.2 +- t_1(0.99) * sqrt((1 - 2/4) * 2 / 400 * 2)."""
    now, before = rows([11, 13], tokens=[10, 10]), rows([10, 10], tokens=[10, 10])
    reach = 63.6567412 * math.sqrt(0.5 * 2 / 400 * 2 / 1)
    assert drop_interval(now, before, n_rows=4) == pytest.approx((0.2 - reach, 0.2 + reach))


def test_a_drop_that_every_token_shares_is_known_from_two_rows_of_unequal_length() -> None:
    """The ratio is exact where change is proportional to length; a mean of rows would not see that."""
    tokens = [10.0, 40.0]
    now, before = rows([11.0, 44.0], tokens=tokens), rows([10.0, 40.0], tokens=tokens)
    assert drop_interval(now, before, n_rows=99) == pytest.approx((0.1, 0.1))


def test_with_all_rows_read_an_interval_is_the_drop_of_the_set() -> None:
    now, before = drawn(1, 9), drawn(2, 9)
    before[:, 2] = now[:, 2]
    drop = level(now).nll - level(before).nll
    assert drop_interval(now, before, n_rows=9) == pytest.approx((drop, drop))
    fall = level(before).accuracy - level(now).accuracy
    assert drop_interval(now, before, n_rows=9, column=CORRECT) == pytest.approx((fall, fall))


def test_one_row_of_several_says_nothing_and_a_row_that_diverged_decides_nothing() -> None:
    one, other = rows([3.0], tokens=[10]), rows([1.0], tokens=[10])
    assert drop_interval(one, other, n_rows=2) == (-math.inf, math.inf)
    lost = rows([math.nan, 1.0], tokens=[10, 10])
    found = drop_interval(lost, rows([1.0, 1.0], tokens=[10, 10]), n_rows=4)
    assert all(map(math.isnan, found))
    assert not decides(found, [0.1])


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.11, 0.2), True), ((0.0, 0.09), True), ((0.0, 0.1), False), ((0.05, 0.6), False)],
)
def test_an_interval_decides_where_it_lies_on_one_side_of_every_bound(
    interval: tuple[float, float], expected: bool
) -> None:
    assert decides(interval, [0.1, 0.5]) is expected


def drawn(seed: int, n: int, *, drop: float = 0.0, spread: float = 0.3) -> Sums:
    """Rows of unlike length; each token costs about ``drop`` nats more than 4."""
    random = np.random.default_rng(seed)
    tokens = random.integers(15, 65, n).astype(np.float64)
    nll = tokens * random.normal(4.0 + drop, spread, n)
    correct = random.binomial(tokens.astype(int), 0.3).astype(np.float64)
    return np.stack([nll, correct, tokens], axis=1)


def changed(before: Sums, seed: int, *, drop: float, spread: float = 0.1) -> Sums:
    """The same rows under a model that got worse by about ``drop`` nats per token."""
    random = np.random.default_rng(seed)
    each = random.normal(drop, spread, len(before))
    fall = random.binomial(before[:, 1].astype(int), 0.2)
    return before + np.stack([each * before[:, 2], -fall, 0.0 * each], axis=1)


@pytest.mark.parametrize("column", [0, CORRECT])
def test_the_variance_is_that_of_all_samples_of_a_set(column: int) -> None:
    """Of 9 rows all 126 samples of 5: their estimates spread as one interval says, within a fifth."""
    before = drawn(3, 9)
    now = changed(before, 4, drop=0.1)
    estimates, variances = [], []
    for places in itertools.combinations(range(9), 5):
        at = list(places)
        low, high = drop_interval(now[at], before[at], n_rows=9, column=column)
        estimates.append((low + high) / 2)
        variances.append(((high - low) / 2 / 4.6040949) ** 2)  # Student's, 4 degrees of freedom
    assert np.mean(variances) == pytest.approx(np.var(estimates), rel=0.2)


def test_an_interval_of_normal_rows_holds_the_drop_of_the_set_in_99_of_100_samples() -> None:
    held = 0
    for seed in range(1000):
        before = drawn(seed, 48)
        now = changed(before, seed + 5000, drop=0.1)
        low, high = drop_interval(now[:16], before[:16], n_rows=48)
        held += low <= level(now).nll - level(before).nll <= high
    assert held / 1000 == pytest.approx(0.99, abs=0.01)


def test_an_estimate_is_the_whole_level_before_and_the_change_of_the_rows_read() -> None:
    now, before = rows([12, 12], tokens=[10, 10], correct=2), rows([10, 10], tokens=[10, 10])
    found = estimated_level(now, before, Level(nll=4.0, accuracy=0.5))
    assert (found.nll, found.accuracy) == pytest.approx((4.2, 0.7))


# Reading


LIMITED = SelectionConfig(
    max_steps=9,
    constraints=(
        {"metric": "retain_drop", "at_most": 0.1},
        {"metric": "general_drop", "at_most": 0.1},
    ),
)
SIZES = {"forget": 7, "retain": 48, "general": 20}


class Trial:
    """Row sums before and now; counts the rows that are read."""

    def __init__(self, seed: int, *, drop: float, spread: float = 0.1) -> None:
        names = (*MEASURED, "target", "unseen")
        self.before = {n: drawn(seed + i, SIZES.get(n, 30)) for i, n in enumerate(names)}
        self.before["unseen"][:, 0] += self.before["unseen"][:, 2]
        self.now = {
            n: changed(self.before[n], seed + 9 + i, drop=drop, spread=spread)
            for i, n in enumerate(MEASURED)
        }
        self.baseline = {name: level(sums) for name, sums in self.before.items()}
        self.read: list[Place] = []

    def reading(self, selection: SelectionConfig = LIMITED) -> Reading:
        def measure(places: Sequence[Place]) -> Sums:
            self.read += places
            found: Sums = np.array([self.now[n][i] for n, i in places]).reshape(-1, 3)
            return found

        return Reading(
            measure=measure,
            orders={n: nested_order(SIZES[n], n) for n in MEASURED},
            before=self.before,
            bounds=bounds(limits(selection), self.baseline),
        )

    def n_read(self) -> Mapping[str, int]:
        assert len(set(self.read)) == len(self.read), "no row is read twice"
        return {name: sum(n == name for n, _ in self.read) for name in MEASURED}


def test_drops_far_from_their_limits_take_four_rows_and_the_forget_set_is_whole() -> None:
    trial = Trial(1, drop=-1.0, spread=0.05)
    trial.reading().until_decided()
    assert trial.n_read() == {"forget": 7, "retain": 4, "general": 4}


def test_a_drop_at_its_limit_takes_every_row() -> None:
    trial = Trial(1, drop=0.1)
    whole = level(trial.now["retain"]).nll - trial.baseline["retain"].nll
    at_limit = SelectionConfig(
        max_steps=9,
        constraints=({"metric": "retain_drop", "at_most": whole},),
        retain_guard=None,
    )
    trial.reading(at_limit).until_decided()
    assert trial.n_read() == {"forget": 7, "retain": 48, "general": 4}


def test_each_stage_has_the_rows_of_the_one_before() -> None:
    orders = nested_order(SIZES["retain"], "retain")
    for seed in range(20):
        trial = Trial(seed, drop=0.08)
        trial.reading().until_decided()
        n = trial.n_read()["retain"]
        assert [place for name, place in trial.read if name == "retain"] == list(orders[:n])


def test_the_rest_makes_it_the_measurement_of_all_rows() -> None:
    trial = Trial(2, drop=0.3)
    reading = trial.reading()
    reading.until_decided()
    before = reading.is_whole
    estimated = degradation(reading.levels(trial.baseline), trial.baseline)
    reading.rest()
    assert (before, reading.is_whole) == (False, True)
    assert trial.n_read() == SIZES
    whole = {name: level(sums) for name, sums in trial.now.items()}
    assert reading.levels(trial.baseline) == whole
    assert estimated["forget_nll"] == whole["forget"].nll
    assert estimated["retain_drop"] != degradation(whole, trial.baseline)["retain_drop"]


def test_a_trial_without_limits_reads_one_stage() -> None:
    trial = Trial(3, drop=0.1)
    free = SelectionConfig(max_steps=9, retain_guard=None)
    trial.reading(free).until_decided()
    assert trial.n_read() == {"forget": 7, "retain": 4, "general": 4}


@pytest.mark.parametrize(
    "metric",
    [
        "retain_drop",
        "general_drop",
        "retain_forgetting",
        "retain_accuracy_drop",
        "general_accuracy_drop",
        "retain_utility",
    ],
)
@given(drop=st.floats(-0.5, 0.5))
def test_every_limit_is_the_same_limit_of_a_drop(metric: ConstraintMetric, drop: float) -> None:
    """The metric of all rows lies beyond its limit exactly where the drop lies beyond its bound."""
    trial = Trial(5, drop=drop)
    limit = {"at_least": 0.9} if metric == "retain_utility" else {"at_most": 0.1}
    selection = SelectionConfig(
        max_steps=9,
        constraints=({"metric": metric, **limit},),
        retain_guard=None,
    )
    metrics = degradation({n: level(s) for n, s in trial.now.items()}, trial.baseline)
    (constraint,) = selection.constraints
    found = bounds(limits(selection), trial.baseline)
    [(name, column, bound)] = [
        (name, column, at) for name in found for column, ats in found[name].items() for at in ats
    ]
    low, _ = drop_interval(trial.now[name], trial.before[name], n_rows=SIZES[name], column=column)
    assert constraint.excess(metrics[metric]) * (low - bound) >= 0.0


def test_wrong_decisions_about_normal_rows_are_few_and_rows_are_saved() -> None:
    """Drops all around the limit: under one in a hundred is put on the wrong side, by three quarters of the rows."""
    wrong, read, n_trials = 0, 0, 250
    for seed in range(n_trials):
        drop = 0.1 + 0.3 * (seed / n_trials - 0.5)
        trial = Trial(100 * seed, drop=drop)
        reading = trial.reading()
        reading.until_decided()
        found = degradation(reading.levels(trial.baseline), trial.baseline)
        whole = degradation({n: level(s) for n, s in trial.now.items()}, trial.baseline)
        for metric in ("retain_drop", "general_drop"):
            wrong += (found[metric] > 0.1) != (whole[metric] > 0.1)
        read += sum(trial.n_read().values()) - SIZES["forget"]
    assert wrong / (2 * n_trials) < 0.01
    assert read / (n_trials * (SIZES["retain"] + SIZES["general"])) < 0.75
