"""Finalists over seeds: the sweep that repeats them, and what is said of it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console
from scipy import stats

from core.errors import UserError
from tuning.ranking import ranked
from tuning.records import TrialRecord
from tuning.repetition import Spread, repeated, repeated_json, repeated_text, repetition
from tuning.run import Run


def test_the_best_trials_start_under_each_seed_and_nothing_else_is_tried(sample_run: Run) -> None:
    spec = repetition(sample_run, top=2, seeds=3)
    best = [dict(t.params) for t in ranked(sample_run.trials)[:2]]
    starts = [dict(s.values) for s in spec.start_from]
    seeds = sorted({s.pop("seed") for s in starts})
    assert len(seeds) == 3 and sample_run.spec.seed not in seeds
    assert [starts.count(params) for params in best] == [3, 3]
    assert spec.budget.trials == spec.budget.finalists == 6
    assert spec.name == "sample-repeat"


def test_a_run_without_a_feasible_trial_has_nothing_to_repeat(sample_run: Run) -> None:
    none = replace(sample_run, trials=tuple(t for t in sample_run.trials if not t.feasible))
    with pytest.raises(UserError, match="nothing to repeat"):
        repetition(none, top=3, seeds=2)


def test_a_repetition_is_not_repeated(sample_run: Run) -> None:
    again = replace(sample_run, spec=repetition(sample_run, top=1, seeds=2))
    with pytest.raises(UserError, match="already searches over seeds"):
        repetition(again, top=1, seeds=2)


def test_a_spread_is_the_mean_with_students_interval() -> None:
    values = [0.9, 0.8, 0.95, 0.85]
    found = Spread.of(values)
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(stats.tstd(values))


def test_one_value_has_no_interval() -> None:
    found = Spread.of([0.5, math.nan])
    assert (found.n, found.mean, found.low, found.high) == (1, 0.5, -math.inf, math.inf)


@pytest.fixture
def over_seeds(sample_run: Run) -> Callable[..., Run]:
    """A run of repetitions with given values by configuration; ``None`` broke a limit."""

    def build(values: dict[int, list[float | None]], drops: dict[int, float]) -> Run:
        like = next(t for t in sample_run.trials if t.feasible)
        trials: list[TrialRecord] = []
        for rank, of in values.items():
            for seed, value in enumerate(of):
                trials.append(
                    replace(
                        like,
                        number=len(trials),
                        params={"adapter.rank": rank, "seed": seed},
                        value=-1.2 if value is None else value,
                        feasible=value is not None,
                        state="COMPLETE",
                        violations={"retain_drop": drops.get(rank, -0.05)},
                        report_metrics={"forget_closure_at_utility": 0.7},
                    )
                )
        return replace(sample_run, trials=tuple(trials))

    return build


def test_a_steady_difference_is_told_apart_though_the_seeds_spread_more(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.5, 0.7, 0.9], 8: [0.56, 0.77, 0.95]}, {})
    first, second = repeated(run)
    assert first.params == {"adapter.rank": 8}
    assert second.is_told_apart
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(-0.06)


def test_of_configurations_that_cannot_be_told_apart_the_gentlest_is_recommended(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.8, 0.9, 0.7], 8: [0.9, 0.8, 0.75]}, {4: -0.09, 8: -0.01})
    first, second = repeated(run)
    assert first.params == {"adapter.rank": 4}
    assert not second.is_told_apart


def test_what_breaks_a_limit_under_some_seed_stands_behind_what_keeps_it(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.9, None, 0.9], 8: [0.6, 0.6, 0.61]}, {})
    first, second = repeated(run)
    assert (first.params, first.kept) == ({"adapter.rank": 8}, 3)
    assert (second.kept, second.value.n) == (2, 2)


def test_it_is_shown_as_a_table_of_80_columns_and_as_json(over_seeds: Callable[..., Run]) -> None:
    run = over_seeds({4: [0.8, 0.9, 0.7], 8: [0.9, 0.8, 0.75]}, {})
    out = io.StringIO()
    Console(file=out, width=80).print(repeated_text(run))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "recommended" in out.getvalue()
    shown = repeated_json(run)["configurations"]
    assert [c["kept_limits"] for c in shown] == [3, 3]
    assert [c["forget_closure_at_utility"]["mean"] for c in shown] == pytest.approx([0.7, 0.7])
