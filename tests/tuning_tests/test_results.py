"""Ranking, Pareto front, savings and the JSON shapes, on hand-made records and on a real ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.ledger import Ledger
from tuning.ranking import best, excess, pareto_front, ranked
from tuning.records import DriverFacts, TrialRecord
from tuning.results import best_json, counts, eta_s, savings, status_json
from tuning.run import Run, load_run

TRIAL_KEYS = [
    "number",
    "state",
    "stopped_by",
    "reason",
    "feasible",
    "pareto",
    "value",
    "params",
    "metrics",
    "report_metrics",
    "step",
    "duration_s",
    "attempt",
    "adapter",
    "value_interval",
    "metrics_intervals",
    "report_intervals",
    "tied_with_best",
    "reported_feasible",
    "probe_rows",
    "landing_factor",
    "evaluation",
    "retry_of",
]


def record(
    number: int, value: float | None, violation: float = -0.1, **changes: Any
) -> TrialRecord:
    made = TrialRecord(
        number=number,
        state="COMPLETE",
        params={"adapter.rank": 4},
        proposed_by="sampler",
        attempt=1,
        stopped_by="budget",
        reason="reached its budget",
        value=value,
        feasible=violation <= 0.0 and value is not None,
        step=1,
        steps=6,
        metrics={},
        violations={"retain_drop": violation, "general_drop": min(violation, -0.2)},
        report_metrics=None,
        duration_s=10.0,
        adapter=None,
    )
    return replace(made, **changes)


def numbers(trials: Sequence[TrialRecord]) -> list[int]:
    return [t.number for t in trials]


# Order and front


def test_excess_is_the_largest_violation() -> None:
    assert excess(record(0, 0.5, 0.3)) == 0.3
    assert excess(replace(record(0, 0.5), violations={})) == 0.0


def test_feasible_trials_come_first_by_value_then_the_others_by_penalty(sample_run: Run) -> None:
    assert numbers(ranked(sample_run.trials)) == [0, 3, 7, 2, 6, 1, 4]
    values = [t.value for t in ranked(sample_run.trials) if not t.feasible]
    assert values == sorted(values, key=lambda v: -(v or 0.0))


def test_a_tie_goes_to_the_earlier_trial(sample_run: Run) -> None:
    run = replace(sample_run, trials=(record(0, 0.5), record(1, 0.7), record(2, 0.7)))
    assert numbers(ranked(run.trials)) == [1, 2, 0]


def test_a_trial_that_a_ranking_pruner_stopped_is_never_the_best(sample_run: Run) -> None:
    stopped = record(0, 0.9, state="PRUNED", stopped_by="ranking_pruner")
    run = replace(sample_run, trials=(stopped, record(1, 0.1), record(2, -1.3, 0.3)))
    assert numbers(ranked(run.trials)) == [1, 0, 2]
    assert best(run.trials) == run.trials[1]
    assert best((stopped,)) is None


def test_the_best_trial_is_feasible_or_none(sample_run: Run) -> None:
    first = best(sample_run.trials)
    assert first is not None and first.number == 0 and first.value == pytest.approx(0.9)
    hopeless = replace(sample_run, trials=(record(0, -1.2, 0.2), record(1, None)))
    assert best(hopeless.trials) is None
    assert best(()) is None


def test_the_front_of_the_sample(sample_run: Run) -> None:
    assert numbers(pareto_front(sample_run.trials)) == [0, 3, 7]


@pytest.mark.parametrize(
    ("trials", "front"),
    [
        pytest.param([], [], id="none"),
        pytest.param([record(0, 0.5)], [0], id="one"),
        pytest.param([record(0, 0.5, -0.1), record(1, 0.4, -0.2)], [0, 1], id="trade-off"),
        pytest.param([record(0, 0.5, -0.1), record(1, 0.4, -0.1)], [0], id="worse-value"),
        pytest.param([record(0, 0.5, -0.1), record(1, 0.5, -0.2)], [1], id="same-value-more-room"),
        pytest.param([record(0, 0.5), record(1, 0.5)], [0, 1], id="equals-stay"),
        pytest.param([record(0, 0.9, 0.1), record(1, 0.1)], [1], id="infeasible-never"),
        pytest.param(
            [record(0, 0.9, state="PRUNED"), record(1, 0.1)], [1], id="pruned-by-ranking-never"
        ),
    ],
)
def test_front_by_hand(trials: list[TrialRecord], front: list[int]) -> None:
    assert numbers(pareto_front(trials)) == front


COORDINATE = st.integers(-4, 4).map(lambda n: n / 4)


@given(st.lists(st.tuples(COORDINATE, COORDINATE, st.booleans()), max_size=12))
def test_nothing_beats_a_member_and_something_beats_every_other(
    points: list[tuple[float, float, bool]],
) -> None:
    trials = [
        record(n, value, violation, state="COMPLETE" if is_complete else "PRUNED")
        for n, (value, violation, is_complete) in enumerate(points)
    ]
    front = pareto_front(trials)
    eligible = [t for t in trials if t.feasible and t.state == "COMPLETE"]

    def beats(a: TrialRecord, b: TrialRecord) -> bool:
        one, two = (a.value or 0.0, -excess(a)), (b.value or 0.0, -excess(b))
        return one != two and one[0] >= two[0] and one[1] >= two[1]

    assert {t.number for t in front} <= {t.number for t in eligible}
    for trial in eligible:
        assert (trial in front) == (not any(beats(other, trial) for other in eligible))
    assert [t.value for t in front] == sorted((t.value or 0.0 for t in front), reverse=True)
    assert bool(front) == bool(eligible)


# Counts, savings, time left


def test_counts_by_state(sample_run: Run) -> None:
    assert counts(sample_run) == {
        "complete": 5,
        "pruned": 2,
        "failed": 1,
        "running": 0,
        "waiting": 1,
        "interrupted": 1,
    }


def test_a_trial_runs_only_while_a_driver_does(sample_run: Run) -> None:
    driven = counts(replace(sample_run, is_driven=True))
    assert (driven["running"], driven["interrupted"]) == (1, 0)
    assert sum(driven.values()) == sum(counts(sample_run).values()) == sample_run.target


def test_a_trial_that_waits_in_the_ledger_is_counted_once(sample_run: Run) -> None:
    waiting = record(1, None, state="WAITING", feasible=False)
    run = replace(sample_run, trials=(record(0, 0.5), waiting))
    assert counts(run)["waiting"] == 9  # of a target of 10


def test_savings_of_the_sample(sample_run: Run) -> None:
    """Six planned steps: trial 1 made 1, trial 2 made 4, trial 4 made 2, trial 3 (overshoot) made 4."""
    saved = savings(sample_run)
    assert (saved.guard_stopped, saved.past_target_stopped) == (3, 1)
    assert saved.steps_saved == (6 - 1) + (6 - 4) + (6 - 2) + (6 - 4)
    assert saved.steps_planned == 7 * 6  # neither the failed nor the running trial
    assert saved.share == pytest.approx(13 / 42)


def test_a_guard_stop_counts_whatever_its_state(sample_run: Run) -> None:
    stopped = [
        record(0, 0.4, stopped_by="retain_guard", steps=4),
        record(1, -1.2, 0.2, state="PRUNED", stopped_by="retain_guard", steps=1),
        record(2, 0.3, state="PRUNED", stopped_by="ranking_pruner", steps=2),
    ]
    saved = savings(replace(sample_run, trials=tuple(stopped)))
    assert (saved.guard_stopped, saved.steps_saved, saved.steps_planned) == (2, 7, 18)


def test_nothing_is_saved_where_nothing_ran(sample_run: Run) -> None:
    saved = savings(replace(sample_run, trials=()))
    assert (saved.steps_saved, saved.share) == (0, 0.0)


def test_time_left_is_that_of_the_trials_left(sample_run: Run) -> None:
    driver = DriverFacts(target=6, concurrent=2)
    running = record(2, None, state="RUNNING", feasible=False, duration_s=None)
    run = replace(sample_run, driver=driver, trials=(record(0, 0.5), record(1, 0.4), running))
    assert eta_s(run) == pytest.approx(10.0 * (3 + 0.5) / 2)
    assert eta_s(replace(run, trials=(running,))) is None
    done = tuple(record(n, 0.5) for n in range(6))
    assert eta_s(replace(run, trials=done)) == 0.0


# Shapes that scripts read


def test_best_json_has_its_binding_shape(sample_run: Run) -> None:
    shown = best_json(sample_run)
    assert list(shown) == ["run", "objective", "constraints", "trials"]
    assert shown["run"] == "sample"
    assert shown["objective"] == {"metric": "forget_closure", "direction": "maximize"}
    assert shown["constraints"] == [
        {"metric": "retain_drop", "at_most": 0.1},
        {"metric": "general_drop", "at_most": 0.1},
    ]
    assert all(list(t) == TRIAL_KEYS for t in shown["trials"])
    assert sorted(t["number"] for t in shown["trials"]) == list(range(9))
    first = shown["trials"][0]
    assert (first["number"], first["state"], first["step"]) == (0, "COMPLETE", 5)
    assert (first["feasible"], first["pareto"]) == (True, True)
    assert first["value"] == pytest.approx(first["metrics"]["forget_closure"]) == pytest.approx(0.9)
    assert first["adapter"] == "trials/0000/attempt-1/adapter"
    assert first["report_metrics"]["retain_drop"] == 0.05
    assert shown["trials"][3]["report_metrics"] is None
    assert [t["number"] for t in shown["trials"] if t["pareto"]] == [0, 3, 7]


def test_best_json_is_strict_json_also_with_divergence(sample_run: Run) -> None:
    text = json.dumps(best_json(sample_run), allow_nan=False)
    diverged = next(t for t in json.loads(text)["trials"] if t["number"] == 4)
    assert diverged["metrics"]["retain_drop"] == "nan"
    assert diverged["metrics"]["general_drop"] == "inf"


@pytest.mark.parametrize("top", [1, 3, 100])
def test_top_is_a_beginning_of_the_whole(sample_run: Run, top: int) -> None:
    assert best_json(sample_run, top=top)["trials"] == best_json(sample_run)["trials"][:top]


def test_status_json_has_its_binding_shape(sample_run: Run) -> None:
    shown = status_json(sample_run)
    assert list(shown) == [
        "run",
        "state",
        "target",
        "counts",
        "guard",
        "best",
        "elapsed_s",
        "eta_s",
    ]
    assert (shown["run"], shown["state"], shown["target"]) == ("sample", "done", 10)
    assert list(shown["counts"]) == [
        "complete",
        "pruned",
        "failed",
        "running",
        "waiting",
        "interrupted",
    ]
    assert shown["guard"] == {
        "stopped": 3,
        "past_target": 1,
        "no_effect": 0,
        "steps_saved": 13,
        "steps_planned": 42,
    }
    assert list(shown["best"]) == TRIAL_KEYS
    assert shown["best"] == best_json(sample_run, top=1)["trials"][0]
    assert (shown["elapsed_s"], shown["eta_s"]) == (187.4, None)
    json.dumps(shown, allow_nan=False)


def test_status_has_no_best_before_a_feasible_trial(sample_run: Run) -> None:
    run = replace(sample_run, trials=(record(0, -1.2, 0.2),), is_driven=True)
    shown = status_json(run)
    assert shown["best"] is None
    assert (shown["state"], shown["eta_s"]) == ("running", 90.0 / 2)


def test_status_and_best_agree_on_the_front_when_values_tie(sample_run: Run) -> None:
    run = replace(sample_run, trials=(record(0, 0.5, -0.1), record(1, 0.5, -0.2)))
    assert status_json(run)["best"] == best_json(run)["trials"][0]
    assert status_json(run)["best"]["pareto"] is False


def test_a_run_without_notes_falls_back_to_its_file(build_run: Callable[..., Run]) -> None:
    run = build_run(scripts=(), notes={})
    shown = status_json(run)
    assert (shown["state"], shown["target"], shown["elapsed_s"]) == ("interrupted", 10, None)
    assert {name for name, n in shown["counts"].items() if n} == {"waiting"}
    assert shown["counts"]["waiting"] == 10


def test_a_dataframe_has_a_row_for_each_trial(sample_run: Run) -> None:
    frame = sample_run.to_dataframe().set_index("number")
    assert list(frame.index) == list(range(9))
    assert frame.loc[0, "value"] == pytest.approx(0.9)
    assert frame.loc[0, "params.adapter.rank"] == sample_run.trials[0].params["adapter.rank"]
    assert frame.loc[0, "report_metrics.retain_drop"] == 0.05
    assert math.isnan(float(frame.loc[1, "report_metrics.retain_drop"]))
    assert frame.index[frame["pareto"]].tolist() == [0, 3, 7]
    assert not {"params", "metrics", "report_metrics"} & set(frame.columns)


def test_extending_a_run_raises_its_target(sample_run: Run) -> None:
    Ledger(sample_run.path, sample_run.spec, create=False).set_note("target", 24)
    assert counts(load_run(sample_run.path))["waiting"] == 15
