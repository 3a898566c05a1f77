"""Intervals of a probe's numbers: against closed forms, a naive bootstrap, and how often they hold the truth."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import METRICS
from core.metrics.intervals import DIFFERENCES, DISTANCES, Sums, intervals
from core.metrics.probes import MEASURED, Level, degradation, level


def rows(
    nll: Sequence[float], *, tokens: Sequence[float] | float = 10.0, accuracy: float = 0.5
) -> Sums:
    """Row sums of rows with these nats per token."""
    means = np.array(nll, dtype=np.float64)
    counts = np.broadcast_to(np.array(tokens, dtype=np.float64), means.shape)
    return np.stack([means * counts, accuracy * counts, counts], axis=1)


def drawn(seed: int, n: int, mean: float, spread: float = 0.6) -> Sums:
    """Rows of unlike length and difficulty."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 65, n).astype(np.float64)
    nll = random.normal(mean, spread, n)
    correct = random.binomial(tokens.astype(int), 0.3).astype(np.float64)
    return np.stack([nll * tokens, correct, tokens], axis=1)


def probe(n: int = 16) -> tuple[dict[str, Sums], dict[str, Sums]]:
    """Row sums of a probe now and before, of sets of ``n`` rows and an approximate set of 2 n."""
    before = {name: drawn(i, n, 4.3) for i, name in enumerate(MEASURED)}
    before["forget"] = drawn(7, n, 2.0, 0.3)
    now = {name: harder(sums, by=0.05, seed=i) for i, (name, sums) in enumerate(before.items())}
    now["forget"] = harder(before["forget"], by=1.9, seed=9)
    return now, before | aims(drawn(8, 2 * n, 4.2), unseen=drawn(10, 2 * n, 6.0))


def aims(target: Sums, *, unseen: Sums | None = None) -> dict[str, Sums]:
    """What is measured before only: rows of the target, and of unseen text; the same if only one is given."""
    return {"target": target, "unseen": target if unseen is None else unseen}


def harder(sums: Sums, *, by: float, seed: int = 0) -> Sums:
    """The same rows, each harder by about as many nats per token."""
    each = by + 0.1 * np.random.default_rng(seed).normal(size=len(sums))
    return sums + np.stack([each * sums[:, 2], 0 * each, 0 * each], axis=1)


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


# What is in it


def test_every_closure_and_every_drop_of_a_probe_has_an_interval() -> None:
    now, before = probe()
    metrics = degradation(levels(now), levels(before))
    judged = {n for n in metrics if METRICS[n].role in ("objective", "constraint", "utility")}
    assert judged <= set(intervals(now, before))
    assert set(intervals(now, before)) == {*DIFFERENCES, *DISTANCES} <= set(metrics)


def test_with_one_row_a_set_every_interval_is_the_metric_itself() -> None:
    """Each draw is the one row: so every formula agrees with that of the probe."""
    now, before = probe(n=1)
    before["target"], before["unseen"] = before["target"][:1], before["unseen"][:1]
    metrics = degradation(levels(now), levels(before))
    for name, (low, high) in intervals(now, before).items():
        assert low == pytest.approx(metrics[name]) == high, name


def levels(sums: Mapping[str, Sums]) -> dict[str, Level]:
    return {name: level(of_rows) for name, of_rows in sums.items()}


# Closed forms


def test_the_interval_of_a_mean_is_two_standard_errors_wide_on_each_side() -> None:
    """Rows of one length: the drop is a mean of n differences; their spread over the square root of n."""
    n = 64
    differences = np.random.default_rng(3).normal(0.05, 0.2, n)
    before = rows([4.0] * n)
    now = before + np.stack([10 * differences, 0 * differences, 0 * differences], axis=1)
    found = intervals(
        dict.fromkeys(MEASURED, now),
        dict.fromkeys(MEASURED, before) | aims(rows([6.0] * n)),
        n_replicates=40_000,
    )["retain_drop"]
    error = differences.std() / math.sqrt(n)
    middle = differences.mean()
    assert found[0] == pytest.approx(middle - 1.96 * error, abs=0.05 * error + 1e-3)
    assert found[1] == pytest.approx(middle + 1.96 * error, abs=0.05 * error + 1e-3)


def test_what_makes_a_row_hard_before_and_after_cancels_in_a_drop() -> None:
    """All rows rise by 0.1 nats, however different they are: paired, the drop is certain."""
    before = {name: drawn(i, 16, 4.0, 2.0) for i, name in enumerate(MEASURED)}
    now = {name: s + np.array([0.1, 0.0, 0.0]) * s[:, 2:] for name, s in before.items()}
    found = intervals(now, before | aims(drawn(5, 16, 6.0)))
    assert found["retain_drop"] == pytest.approx((0.1, 0.1))
    assert found["general_drop"] == pytest.approx((0.1, 0.1))


def test_long_rows_count_for_more() -> None:
    """Two rows of 10 and 90 tokens: a draw is both (0.9), or twice one of them (0 or 1)."""
    before = rows([4.0, 4.0], tokens=[10.0, 90.0])
    now = rows([4.0, 5.0], tokens=[10.0, 90.0])
    target = aims(rows([6.0]))
    found = intervals(dict.fromkeys(MEASURED, now), dict.fromkeys(MEASURED, before) | target)
    assert found["retain_drop"] == pytest.approx((0.0, 1.0))
    assert level(now).nll - level(before).nll == pytest.approx(0.9)


def test_a_model_exactly_on_target_may_be_exactly_on_target() -> None:
    """Percentiles of the closure itself would all lie below 1."""
    now, before = probe(n=32)
    gap = level(before["target"]).nll - level(before["forget"]).nll
    now["forget"] = before["forget"] + np.array([gap, 0, 0]) * before["forget"][:, 2:]
    low, high = intervals(now, before)["forget_closure"]
    assert high == 1.0
    assert 0.6 < low < 0.95


def test_a_closure_far_past_its_target_is_clipped() -> None:
    now, before = probe()
    now["forget"] = harder(before["forget"], by=40.0)
    assert intervals(now, before)["forget_closure"] == (-1.0, -1.0)


def test_the_levels_of_a_retain_only_model_are_drawn_with_the_forget_rows() -> None:
    """The same rows under two models: what makes them hard cancels, and the closure is surer."""
    before = {name: drawn(i, 32, 2.0) for i, name in enumerate(MEASURED)}
    now = {name: harder(s, by=0.9) for name, s in before.items()}
    before |= aims(harder(before["forget"], by=2.0, seed=1))
    of_forget = {"target": "forget", "unseen": "approximate"}
    paired = intervals(now, before, rows_of=of_forget)["forget_closure"]
    unpaired = intervals(now, before)["forget_closure"]
    assert width(paired) < 0.4 * width(unpaired)


# A naive bootstrap


def naive(
    now: Mapping[str, Sums], before: Mapping[str, Sums], name: str, *, n_replicates: int
) -> tuple[float, float]:
    """The interval of a drop or of the signed distance to the target, draw by draw and row by row."""
    random = np.random.default_rng(11)
    values = []
    for _ in range(n_replicates):
        picks = {s: random.integers(len(before[s]), size=len(before[s])) for s in before}

        def nll(sums: Sums, of: str, picks: Mapping[str, npt.NDArray[np.int64]] = picks) -> float:
            picked = [sums[i] for i in picks[of]]
            return float(sum(r[0] for r in picked) / sum(r[2] for r in picked))

        if name == "distance":
            f, f0 = nll(now["forget"], "forget"), nll(before["forget"], "forget")
            target = nll(before["target"], "target")
            values.append((f - target) / abs(f0 - target))
        else:
            values.append(nll(now[name], name) - nll(before[name], name))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def test_a_naive_bootstrap_agrees() -> None:
    now, before = probe(n=12)
    now["forget"] = harder(before["forget"], by=0.8)  # so that the closure does not fold
    found = intervals(now, before, n_replicates=20_000)
    for name in ("retain", "general"):
        expected = naive(now, before, name, n_replicates=4000)
        tolerance = 0.08 * width(expected)
        assert found[f"{name}_drop"] == pytest.approx(expected, abs=tolerance)
    low, high = naive(now, before, "distance", n_replicates=4000)
    assert high < 0.0
    assert found["forget_closure"] == pytest.approx((1 + low, 1 + high), abs=0.08 * (high - low))


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """Samples of 48 rows from a known population: the true drop is 0.05 nats."""
    held = 0
    target = aims(rows([9.0] * 4))
    for seed in range(300):
        before = drawn(seed, 48, 4.3)
        now = harder(before, by=0.05, seed=seed + 1000)
        sets = dict.fromkeys(MEASURED, before) | target
        low, high = intervals(dict.fromkeys(MEASURED, now), sets, n_replicates=500)["retain_drop"]
        held += low <= 0.05 <= high
    assert 0.90 <= held / 300 <= 0.98


# Orders of magnitude that decisions rest on


def test_three_times_the_rows_make_a_drop_surer_by_the_square_root_of_three() -> None:
    few, many = probe(n=16), probe(n=48)
    ratio = width(intervals(*few)["retain_drop"]) / width(intervals(*many)["retain_drop"])
    assert 1.2 < ratio < 2.6


def test_the_same_rows_are_drawn_at_every_probe() -> None:
    now, before = probe()
    assert intervals(now, before) == intervals(now, before)
    assert intervals(now, before) != intervals(now, before, seed=1)


@pytest.mark.parametrize("n", [1, 7, 3000])
def test_replicates_are_drawn_in_blocks_without_a_seam(n: int) -> None:
    now, before = probe(n=n)
    found = intervals(now, before, n_replicates=1500)
    assert all(low <= high for low, high in found.values())
    assert np.isfinite(list(found.values())).all()


@given(seed=st.integers(0, 10**6), n=st.integers(2, 20), shift=st.floats(-1.0, 6.0))
@settings(deadline=None, max_examples=40)
def test_ends_are_in_order_and_closures_in_their_range(seed: int, n: int, shift: float) -> None:
    before = {name: drawn(seed + i, n, 4.0) for i, name in enumerate(MEASURED)}
    now = {name: harder(s, by=shift, seed=seed) for name, s in before.items()}
    found = intervals(now, before | aims(drawn(seed + 9, n, 6.5)), n_replicates=200)
    for name, (low, high) in found.items():
        assert low <= high
        if name in DISTANCES:
            assert -1.0 <= low <= high <= 1.0


# What has none


def test_a_set_that_diverged_has_no_interval_and_the_others_keep_theirs() -> None:
    now, before = probe()
    now["forget"][3, 0] = math.nan
    found = intervals(now, before)
    assert "forget_closure" not in found
    assert {"retain_drop", "general_drop"} <= set(found)
    now["retain"][0, 0] = math.inf
    assert "retain_drop" not in intervals(now, before)


def test_other_rows_before_are_refused() -> None:
    now, before = probe()
    before["retain"] = before["retain"][:5]
    with pytest.raises(
        ValueError, match=r"rows now and before must be the same, got \[5, 16\] rows"
    ):
        intervals(now, before)
