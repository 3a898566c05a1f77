"""Ties, and what the reporting split says of finalists: who is best, on hand-made records and a real ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.ranking import (
    best,
    by_probes,
    displaced,
    in_order,
    overlap,
    pareto_front,
    ranked,
    tied_with_best,
    worst_drop,
)
from tuning.records import TrialRecord
from tuning.results import best_json, doubts, status_json
from tuning.run import Run
from tuning.views import status_text

AT_MOST = 0.1


def record(
    number: int,
    value: float,
    interval: tuple[float, float] | None = None,
    *,
    drop: float = 0.0,
    steps: int = 6,
    reported_drop: float | None = None,
    **changes: Any,
) -> TrialRecord:
    """A finished trial under ``retain_drop <= 0.1``; finalists have a reported drop."""
    report = None if reported_drop is None else {"retain_drop": reported_drop}
    made = TrialRecord(
        number=number,
        state="COMPLETE",
        params={},
        proposed_by="sampler",
        attempt=1,
        stopped_by="budget",
        reason="reached its budget",
        value=value,
        feasible=drop <= AT_MOST,
        step=steps,
        steps=steps,
        metrics={"retain_drop": drop},
        violations={"retain_drop": drop - AT_MOST},
        report_metrics=report,
        duration_s=10.0,
        adapter=None,
        value_interval=interval,
    )
    return replace(made, **changes)


def numbers(trials: Sequence[TrialRecord]) -> list[int]:
    return [t.number for t in trials]


# The five trials of a demo: values and reporting split as measured, intervals of about 0.1 on each side

DEMO = (
    record(0, 0.994, (0.90, 1.0), drop=0.05, reported_drop=0.143),
    record(1, 0.956, (0.85, 1.0), drop=0.02, reported_drop=0.04),
    record(2, 0.951, (0.85, 1.0), drop=-0.03, reported_drop=-0.01),
    record(3, 0.910, (0.80, 0.99), drop=0.09),
    record(4, 0.879, (0.78, 0.98), drop=0.08),
    record(5, 0.328, (0.25, 0.41), drop=-0.10),
)


def test_values_that_cannot_be_told_apart_are_a_tie_which_the_worst_drop_decides() -> None:
    assert numbers(by_probes(DEMO)) == [2, 1, 0, 4, 3, 5]
    found = best(DEMO)
    assert found is not None and found.number == 2
    assert numbers(tied_with_best(DEMO)) == [1, 0, 4, 3]


def test_a_trial_outside_the_tie_is_last_however_small_its_drop() -> None:
    assert numbers(ranked(DEMO))[-1] == 5


def test_runs_without_intervals_are_ranked_by_value_as_ever() -> None:
    old = [replace(t, value_interval=None, report_metrics=None) for t in DEMO]
    assert numbers(ranked(old)) == [0, 1, 2, 3, 4, 5]
    assert tied_with_best(old) == []
    assert numbers(pareto_front(old)) == [0, 1, 2, 5]


def test_fewer_steps_decide_between_equal_drops_and_the_value_between_equal_steps() -> None:
    trials = [
        record(0, 0.95, (0.8, 1.0), steps=6),
        record(1, 0.90, (0.8, 1.0), steps=3),
        record(2, 0.92, (0.8, 1.0), steps=3),
    ]
    assert numbers(ranked(trials)) == [2, 1, 0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param((0.8, 0.9), (0.85, 1.0), True, id="overlap"),
        pytest.param((0.8, 0.9), (0.9, 1.0), True, id="touch"),
        pytest.param((0.8, 0.89), (0.9, 1.0), False, id="apart"),
        pytest.param((0.5, 1.0), (0.7, 0.8), True, id="inside"),
        pytest.param(None, (0.7, 0.8), False, id="unknown"),
        pytest.param(None, None, False, id="both-unknown"),
    ],
)
def test_overlap_by_hand(
    one: tuple[float, float] | None, other: tuple[float, float] | None, expected: bool
) -> None:
    assert overlap(one, other) is overlap(other, one) is expected


def test_without_constraints_the_worst_drop_is_the_larger_of_the_plain_ones() -> None:
    trial = replace(
        record(0, 0.9), metrics={"retain_drop": 0.2, "general_drop": 0.5}, violations={}
    )
    assert worst_drop(trial) == 0.5
    assert worst_drop(replace(trial, violations={"retain_drop": 0.1})) == 0.1
    assert worst_drop(replace(trial, metrics={}, violations={})) == 0.0


JUDGED = st.builds(
    lambda value, half, drop, steps: record(
        0, value, None if half is None else (value - half, value + half), drop=drop, steps=steps
    ),
    st.integers(0, 8).map(lambda n: n / 8),
    st.none() | st.integers(0, 4).map(lambda n: n / 16),
    st.integers(-4, 0).map(lambda n: n / 40),
    st.integers(1, 3),
)


@given(st.lists(JUDGED, max_size=9))
def test_the_first_has_the_highest_value_or_ties_with_it_and_all_stay(
    trials: list[TrialRecord],
) -> None:
    trials = [replace(t, number=i) for i, t in enumerate(trials)]
    order = in_order(trials)
    assert sorted(numbers(order)) == list(range(len(trials)))
    if not order:
        return
    highest = max(t.value or 0.0 for t in trials)
    top = [t for t in trials if t.value == highest]
    assert order[0] in top or any(overlap(order[0].value_interval, t.value_interval) for t in top)
    assert in_order(order) == order
    front = pareto_front(trials)
    assert bool(front) and set(numbers(front)) <= set(numbers(trials))


@given(st.lists(JUDGED, max_size=12), st.sampled_from([0.0, 0.0625, -0.25]))
def test_the_front_is_what_no_other_beats_in_value_and_excess(
    trials: list[TrialRecord], shift: float
) -> None:
    """Also where an interval, being made by resampling, does not hold its value."""
    trials = [replace(t, number=i) for i, t in enumerate(trials)]
    if trials and trials[0].value_interval is not None:
        ends = [end + shift for end in trials[0].value_interval]
        trials[0] = replace(trials[0], value_interval=(ends[0], ends[1]))

    def beats(a: TrialRecord, b: TrialRecord) -> bool:
        is_tie = overlap(a.value_interval, b.value_interval) or a.value == b.value
        is_higher = (a.value or 0.0) > (b.value or 0.0) and not is_tie
        drops = a.metrics["retain_drop"], b.metrics["retain_drop"]
        return (is_higher and drops[0] <= drops[1]) or (
            drops[0] < drops[1] and (is_tie or is_higher)
        )

    expected = [t for t in ranked(trials) if not any(beats(other, t) for other in trials)]
    assert numbers(pareto_front(trials)) == numbers(expected)


# The reporting split


def test_the_best_by_probes_gives_way_to_the_next_that_keeps_its_constraints_on_new_rows() -> None:
    """As measured: the winner of the probe split has general_drop +0.143 on the reporting split."""
    alone = [record(0, 0.994, (0.95, 1.0), reported_drop=0.143), record(1, 0.8, (0.7, 0.9))]
    next_best = record(2, 0.7, (0.6, 0.75), reported_drop=0.05)
    found = best([*alone, next_best])
    assert found is not None and found.number == 1  # not measured there: nothing speaks against it
    reported = [alone[0], replace(alone[1], report_metrics={"retain_drop": 0.02}), next_best]
    found = best(reported)
    assert found is not None and found.number == 1
    assert numbers(displaced(reported)) == [0]
    assert numbers(ranked(reported)) == [1, 2, 0]


def test_where_no_finalist_keeps_its_constraints_the_order_stays() -> None:
    trials = [record(0, 0.9, reported_drop=0.2), record(1, 0.8, reported_drop=0.3), record(2, 0.7)]
    assert numbers(ranked(trials)) == [0, 1, 2]
    assert displaced(trials) == []


def test_a_finalist_that_breaks_a_constraint_is_not_on_the_front_where_another_keeps_it() -> None:
    assert numbers(pareto_front(DEMO)) == [2, 5]
    broken = [record(0, 0.9, reported_drop=0.2), record(1, 0.8, drop=-0.1)]
    assert numbers(pareto_front(broken)) == [0, 1]


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        pytest.param(None, None, id="not-measured"),
        pytest.param(0.05, True, id="kept"),
        pytest.param(0.1, True, id="just-kept"),
        pytest.param(0.101, False, id="broken"),
        pytest.param(float("nan"), False, id="nan"),
    ],
)
def test_reported_feasible_by_hand(reported: float | None, expected: bool | None) -> None:
    assert record(0, 0.9, drop=0.03, reported_drop=reported).reported_feasible is expected


# From the ledger to the words


def script_of(trial_script: Any, closure: float, drop: float) -> Any:
    """A trial of one probe with this closure (target 3.0, untouched 1.0) and drop; interval 0.1 on each side."""
    return trial_script(probes=[(1.0 + 2.0 * closure, drop, drop)], half_width=0.1)


@pytest.fixture
def tied_run(build_run: Callable[..., Run], trial_script: Any) -> Run:
    """Three trials of which two tie, and the best by probes breaks a constraint on the reporting split."""
    closures = [(0.95, 0.02), (0.90, 0.05), (0.30, 0.0)]
    broken: Mapping[str, float] = {"retain_drop": 0.02, "general_drop": 0.143}
    kept = {"retain_drop": 0.04, "general_drop": 0.06}
    return build_run(
        scripts=[script_of(trial_script, *c) for c in closures],
        changes={"budget": {"trials": 3, "max_steps": 1}},
        notes={"report:0": broken, "report:1": kept},
    )


def test_intervals_go_through_the_ledger_into_the_json(tied_run: Run) -> None:
    first, *rest = best_json(tied_run)["trials"]
    assert first["number"] == 1
    assert first["value_interval"] == pytest.approx([0.8, 1.0])
    assert first["metrics_intervals"]["retain_drop"] == pytest.approx([-0.05, 0.15])
    assert (first["tied_with_best"], first["reported_feasible"]) == (False, True)
    assert [(t["number"], t["tied_with_best"], t["reported_feasible"]) for t in rest] == [
        (0, True, False),
        (2, False, None),
    ]
    assert status_json(tied_run)["best"] == first


def test_ties_and_broken_constraints_are_said_beside_the_name_of_the_best(tied_run: Run) -> None:
    text = status_text(tied_run)
    assert "best: trial 1, forget_closure 0.900 (0.80 to 1.00) at step 1" in text
    assert "trial 0 ties with it: the 95 % intervals overlap" in text
    assert (
        "trial 0 would come first on the probe split, but breaks a constraint on the reporting split: "
        "general_drop +0.143 (limit 0.1)"
    ) in text


def test_a_best_trial_that_breaks_a_constraint_on_new_rows_says_so(
    build_run: Callable[..., Run], trial_script: Any
) -> None:
    run = build_run(
        scripts=[script_of(trial_script, 0.9, 0.05)],
        changes={"budget": {"trials": 1, "max_steps": 1}},
        notes={"report:0": {"retain_drop": 0.2, "general_drop": 0.06}},
    )
    assert doubts(run) == [
        "it breaks a constraint on the reporting split: retain_drop +0.200 (limit 0.1); no finalist keeps all"
    ]


def test_nothing_is_doubted_in_a_run_without_intervals_that_keeps_its_constraints(
    sample_run: Run,
) -> None:
    assert doubts(sample_run) == []
    assert "tie" not in status_text(sample_run)
    assert all(t["value_interval"] is None for t in best_json(sample_run)["trials"])
