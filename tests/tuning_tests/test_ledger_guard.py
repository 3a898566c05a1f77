"""The study in SQLite stops trials: verdicts of the guard for each attempt, and of the ranking pruner."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from analytic_study import outcome_of, probe, run_trial, spec_of, study_in

from tuning.config import RankingName
from tuning.ledger import Ledger
from tuning.pruning import guard_series


def test_the_guard_stops_after_its_patience(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    number, _ = ledger.ask()
    attempt = ledger.begin_attempt(number)
    series = [probe(1, 0.1, 0.2), probe(2, 0.2, 0.3)]
    assert ledger.report(number, attempt, series[:1]) is None
    verdict = ledger.report(number, attempt, series)
    assert verdict is not None
    assert (verdict.stopped_by, verdict.metric, verdict.value) == (
        "retain_guard",
        "retain_drop",
        0.3,
    )


def test_nan_in_a_guarded_metric_stops_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    number, _ = ledger.ask()
    verdict = ledger.report(number, ledger.begin_attempt(number), [probe(1, math.nan, math.nan)])
    assert verdict is not None
    assert (verdict.stopped_by, verdict.metric) == ("non_finite", "retain_drop")


def test_a_second_attempt_is_not_judged_by_the_first_ones_probes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    number, _ = ledger.ask()
    first = ledger.begin_attempt(number)
    assert ledger.report(number, first, [probe(1, 0.1, 0.2)]) is None
    ledger = Ledger(tmp_path, spec_of(), create=False)
    second = ledger.begin_attempt(number)
    assert second == first + 1 == 2
    assert ledger.running() == [(number, ledger.running()[0][1], 2)]
    series = [probe(1, 0.3, 0.0), probe(2, 0.4, 0.2), probe(3, 0.5, 0.3)]
    assert ledger.report(number, second, series[:1]) is None
    assert (
        ledger.report(number, second, series[:2]) is None
    )  # the first attempt's 0.2 does not count
    assert ledger.report(number, second, series) is not None


@pytest.mark.parametrize("ranking", get_args(RankingName))
def test_a_replay_after_a_crash_gives_the_verdicts_that_were_given_before_it(
    tmp_path: Path, ranking: str
) -> None:
    pruning = {"retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0}}
    ranked = {"startup_trials": 0, "warmup_steps": 0, "reduction_factor": 2}
    spec = spec_of(pruning=pruning | {"ranking": ranking} | ranked)
    ledger = Ledger(tmp_path, spec, create=True)
    run_trial(ledger, spec, value=lambda _: 0.65)
    number, _ = ledger.ask()
    attempt = ledger.begin_attempt(number)
    series = [probe(1, 0.3), probe(2, 0.6), probe(3, 0.61, 0.2), probe(4, 0.62, 0.3)]
    live = [ledger.report(number, attempt, series[: i + 1]) for i in range(4)]
    assert live[0] is None
    assert live[-1] is not None
    reopened = Ledger(tmp_path, spec, create=False)
    assert [reopened.report(number, attempt, series[: i + 1]) for i in range(4)] == live


def test_a_probe_left_out_counts_for_grace_and_patience_in_the_study(tmp_path: Path) -> None:
    """As the one before it: the guard stops where it would with every probe, live and replayed."""
    guard = {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 2}
    spec = spec_of(pruning={"retain": guard}, budget={"trials": 2, "max_steps": 9})
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    attempt = ledger.begin_attempt(number)
    series = [
        probe(1, 0.1),
        replace(probe(3, 0.3, 0.2), skipped=(2,)),
        probe(4, 0.4, 0.2),
        probe(5, 0.5, 0.2),
    ]
    live = [ledger.report(number, attempt, series[:n]) for n in range(1, 5)]
    assert [verdict is not None for verdict in live] == [False, False, True, True]
    assert live[2] is not None
    assert "up to probe 4" in live[2].reason
    again = Ledger(tmp_path, spec, create=False)
    assert [again.report(number, attempt, series[:n]) for n in range(1, 5)] == live
    recorded = study_in(tmp_path).trials[number]
    assert len(guard_series(recorded)) == 5


def test_a_step_in_the_study_is_not_reported_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    number, _ = ledger.ask()
    ledger.report(number, ledger.begin_attempt(number), [probe(1, 0.1)])
    ledger = Ledger(tmp_path, spec_of(), create=False)
    second = ledger.begin_attempt(number)
    ledger.report(number, second, [probe(1, 0.7)])
    ledger.report(number, second, [probe(1, 0.7), probe(2, 0.6)])
    assert study_in(tmp_path).trials[number].intermediate_values == {1: 0.1, 2: 0.7}


def test_pruners_see_the_best_feasible_objective_so_far(tmp_path: Path) -> None:
    spec = spec_of(pruning={"retain": {"patience": 9, "hard_limit": 9.0}})
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    attempt = ledger.begin_attempt(number)
    series = [probe(1, 0.9, 0.3), probe(2, 0.2), probe(3, 0.1)]
    for n in range(1, 4):
        ledger.report(number, attempt, series[:n])
    seen = study_in(tmp_path).trials[number].intermediate_values
    assert seen == pytest.approx({1: -1.2, 2: 0.2, 3: 0.2})


def test_without_a_guard_nothing_is_stopped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(pruning={"retain": None}), create=True)
    number, _ = ledger.ask()
    assert ledger.report(number, ledger.begin_attempt(number), [probe(1, 0.1, 9.0)]) is None


@pytest.mark.parametrize("ranking", get_args(RankingName))
@pytest.mark.parametrize("steps", [1, 3])
def test_a_trial_that_made_all_its_steps_is_not_stopped_by_a_comparison(
    tmp_path: Path, ranking: str, steps: int
) -> None:
    pruning = {"retain": None, "ranking": ranking, "warmup_steps": steps}
    spec = spec_of(pruning=pruning, budget={"trials": 6, "max_steps": steps})
    ledger = Ledger(tmp_path, spec, create=True)
    values = iter([0.9, 0.5, 0.8, 0.4, 0.7, 0.6])
    for _ in range(6):
        reached = next(values)
        run_trial(ledger, spec, lambda _, reached=reached: reached)  # type: ignore[misc]
    ended = [t for t in study_in(tmp_path).trials if max(t.intermediate_values) == steps]
    assert len(ended) >= 5
    assert {t.state.name for t in ended} == {"COMPLETE"}


@pytest.mark.parametrize("ranking", ["successive_halving", "hyperband"])
def test_a_second_attempt_completes_its_rungs_anew(tmp_path: Path, ranking: str) -> None:
    """Of two trials that are compared at step 1, a worse one is stopped there, also in its second attempt."""
    pruning = {"retain": None, "ranking": ranking, "warmup_steps": 1, "reduction_factor": 2}
    spec = spec_of(pruning=pruning, budget={"trials": 12, "max_steps": 2})
    ledger = Ledger(tmp_path, spec, create=True)
    for _ in range(6):
        run_trial(ledger, spec, lambda _: 0.8)
    verdicts = []
    for _ in range(3):  # of hyperband's two brackets, one compares at step 1
        number, _ = ledger.ask()
        first, second = (
            ledger.report(number, ledger.begin_attempt(number), [probe(1, 0.1)]) for _ in range(2)
        )
        assert first == second
        verdicts.append(first)
    stopped = [v for v in verdicts if v is not None]
    assert stopped and {v.stopped_by for v in stopped} == {"ranking_pruner"}


def test_a_verdict_is_recorded_before_it_is_acted_upon(tmp_path: Path) -> None:
    """What was decided stands, although the trials that it was compared with have changed since."""
    pruning = {"retain": None, "ranking": "median", "startup_trials": 1, "warmup_steps": 0}
    spec = spec_of(pruning=pruning)
    ledger = Ledger(tmp_path, spec, create=True)
    run_trial(ledger, spec, lambda _: 0.3)
    number, _ = ledger.ask()
    attempt, series = ledger.begin_attempt(number), [probe(1, 0.2)]
    assert ledger.report(number, attempt, series) is None
    run_trial(ledger, spec, lambda _: 0.9)
    run_trial(ledger, spec, lambda _: 0.9)
    assert Ledger(tmp_path, spec, create=False).report(number, attempt, series) is None
    second = ledger.begin_attempt(number)
    verdict = ledger.report(number, second, series)
    assert verdict is not None and verdict.stopped_by == "ranking_pruner"
    assert Ledger(tmp_path, spec, create=False).report(number, second, series) == verdict


def test_what_was_decided_about_a_probe_stands_when_a_later_attempt_goes_on_after_it(
    tmp_path: Path,
) -> None:
    """Others are better by then; stopped at the old probe, the trial would have the adapter of a later one."""
    pruning = {"retain": None, "ranking": "median", "startup_trials": 1, "warmup_steps": 0}
    spec = spec_of(pruning=pruning)
    ledger = Ledger(tmp_path, spec, create=True)
    run_trial(ledger, spec, lambda _: 0.3)
    number, _ = ledger.ask()
    series = [probe(1, 0.2), probe(2, 0.2)]
    attempt = ledger.begin_attempt(number)
    assert ledger.report(number, attempt, series[:1]) is None
    run_trial(ledger, spec, lambda _: 0.9)
    run_trial(ledger, spec, lambda _: 0.9)
    second = ledger.begin_attempt(number)
    carried = [replace(made, resumed_at=1) for made in series]
    assert ledger.report(number, second, carried[:1]) is None
    verdict = ledger.report(number, second, carried)
    assert verdict is not None and verdict.stopped_by == "ranking_pruner"
    third = ledger.begin_attempt(number)
    again = [replace(made, resumed_at=2) for made in series]
    assert ledger.report(number, third, again[:1]) is None
    assert ledger.report(number, third, again) == verdict


def test_the_median_pruner_stops_what_ranks_behind(tmp_path: Path) -> None:
    pruning = {"retain": None, "ranking": "median", "startup_trials": 2, "warmup_steps": 0}
    spec = spec_of(pruning=pruning)
    ledger = Ledger(tmp_path, spec, create=True)
    for _ in range(2):
        run_trial(ledger, spec, lambda _: 0.8)
    number, _ = ledger.ask()
    probes = [probe(1, 0.01)]
    verdict = ledger.report(number, ledger.begin_attempt(number), probes)
    assert verdict is not None and verdict.stopped_by == "ranking_pruner"
    assert "ranks behind the other trials" in verdict.reason
    ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
    assert study_in(tmp_path).trials[number].state.name == "PRUNED"
