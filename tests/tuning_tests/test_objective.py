"""What a finished trial is told: COMPLETE or PRUNED, its value, and constraints that stay finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import SelectionConfig
from core.measuring.selection import (
    WORST_EXCESS,
    GuardVerdict,
    Probe,
    StoppedBy,
    guard_verdict,
    is_feasible,
)
from tuning.objective import Outcome, conclude

LIMIT, HARD = 0.10, 0.50


def selection(**changes: Any) -> SelectionConfig:
    values = {
        "max_steps": 4,
        "constraints": [
            {"metric": "retain_drop", "at_most": LIMIT},
            {"metric": "general_drop", "at_most": LIMIT},
        ],
        "retain_guard": {"limit": LIMIT, "hard_limit": HARD, "patience": 2, "grace_steps": 0},
    }
    return SelectionConfig.model_validate(values | changes)


Series = Sequence[tuple[float, float, float]]


def probes(series: Series, stopped_by: StoppedBy | None = None) -> list[Probe]:
    """Probes of closure, retain drop and general drop; the last one ended by ``stopped_by``."""
    return [
        Probe(
            step=step,
            metrics={
                "forget_closure": closure,
                "retain_drop": retain,
                "general_drop": general,
                "forget_nll": 1.0 + 2.0 * closure,
            },
            seconds=float(step),
            stopped_by=stopped_by if step == len(series) else None,
        )
        for step, (closure, retain, general) in enumerate(series, start=1)
    ]


def guarded(series: Series, **changes: Any) -> Outcome:
    """The outcome of a trial that the guard really stops at the last of ``series``."""
    rules = selection(**changes)
    made = probes(series)
    assert rules.retain_guard is not None
    verdict = guard_verdict([p.metrics for p in made], rules.retain_guard)
    assert verdict is not None
    return conclude(made, rules, verdict)


RANKED_OUT = GuardVerdict(
    stopped_by="ranking_pruner", metric="best", value=0.2, limit=0.2, reason="ranks behind"
)


def test_guard_stop_without_a_feasible_probe_is_pruned() -> None:
    outcome = guarded([(0.3, 0.2, 0.0), (0.5, 0.3, 0.0)])
    assert (outcome.state, outcome.stopped_by, outcome.feasible) == (
        "PRUNED",
        "retain_guard",
        False,
    )
    assert outcome.violations == pytest.approx({"retain_drop": 0.2, "general_drop": -0.1})
    assert outcome.value == pytest.approx(-1.2)
    assert (outcome.step, outcome.steps) == (2, 2)
    assert "retain_drop = 0.300" in outcome.reason and "limit 0.1" in outcome.reason


@pytest.mark.parametrize("closure", [0.0, -0.4])
def test_guard_stop_after_a_feasible_probe_no_better_than_the_untouched_model_is_pruned(
    closure: float,
) -> None:
    outcome = guarded([(closure, 0.0, 0.0), (0.5, 0.9, 0.0)])
    assert (outcome.state, outcome.feasible, outcome.step) == ("PRUNED", False, 2)
    assert outcome.violations["retain_drop"] == pytest.approx(0.8)


def test_guard_stop_after_a_feasible_probe_is_complete_with_its_value() -> None:
    outcome = guarded([(0.2, 0.0, 0.0), (0.4, 0.08, 0.05), (0.7, 0.3, 0.2), (0.8, 0.4, 0.3)])
    assert (outcome.state, outcome.stopped_by) == ("COMPLETE", "retain_guard")
    assert (outcome.value, outcome.step, outcome.steps) == (0.4, 2, 4)
    assert outcome.feasible
    assert outcome.metrics["retain_drop"] == 0.08
    assert outcome.violations == pytest.approx({"retain_drop": -0.02, "general_drop": -0.05})


def test_the_smallest_improvement_is_enough() -> None:
    outcome = guarded([(1e-9, 0.0, 0.0), (0.5, 0.9, 0.0)])
    assert (outcome.state, outcome.value) == ("COMPLETE", 1e-9)


def test_a_probe_on_the_limit_is_feasible() -> None:
    outcome = conclude(probes([(0.4, LIMIT, LIMIT)], "budget"), selection(), None)
    assert outcome.feasible
    assert outcome.violations == {"retain_drop": 0.0, "general_drop": 0.0}


def test_budget_is_complete_with_the_best_feasible_probe() -> None:
    series = [(0.3, 0.0, 0.0), (0.6, 0.05, 0.0), (0.9, 0.2, 0.0), (0.5, 0.0, 0.0)]
    outcome = conclude(probes(series, "budget"), selection(), None)
    assert (outcome.state, outcome.stopped_by) == ("COMPLETE", "budget")
    assert (outcome.value, outcome.step, outcome.steps) == (0.6, 2, 4)
    assert outcome.reason == "reached its budget of 4 steps"


def test_of_equal_probes_the_first_counts() -> None:
    outcome = conclude(probes([(0.5, 0.0, 0.0), (0.5, -0.2, 0.0)], "budget"), selection(), None)
    assert outcome.step == 1


def test_budget_without_a_feasible_probe_is_complete_and_penalised() -> None:
    outcome = conclude(probes([(0.3, 0.2, 0.0), (0.9, 0.15, 0.12)], "budget"), selection(), None)
    assert (outcome.state, outcome.feasible, outcome.step) == ("COMPLETE", False, 2)
    assert outcome.value == pytest.approx(-1.0 - 0.05 - 0.02)


def test_a_feasible_trial_that_forgot_nothing_is_complete_with_its_value() -> None:
    outcome = conclude(probes([(-0.2, 0.0, 0.0), (-0.3, 0.0, 0.0)], "budget"), selection(), None)
    assert (outcome.state, outcome.feasible, outcome.value) == ("COMPLETE", True, -0.2)


def test_past_target_is_complete_with_the_probe_before_the_overshoot() -> None:
    outcome = conclude(
        probes([(0.8, -0.1, 0.0), (0.4, -0.1, 0.0), (0.1, -0.1, 0.0)], "past_target"),
        selection(),
        None,
    )
    assert (outcome.state, outcome.stopped_by) == ("COMPLETE", "past_target")
    assert (outcome.value, outcome.step, outcome.steps) == (0.8, 1, 3)
    assert "past its target" in outcome.reason


def test_divergence_without_a_feasible_probe_is_pruned_with_finite_violations() -> None:
    outcome = guarded([(0.1, 0.2, 0.0), (math.nan, math.nan, math.inf)])
    assert (outcome.state, outcome.stopped_by) == ("PRUNED", "non_finite")
    assert outcome.violations == {"retain_drop": WORST_EXCESS, "general_drop": WORST_EXCESS}
    assert outcome.value == -1.0 - 2 * WORST_EXCESS


def test_divergence_of_the_forget_set_alone_breaks_every_constraint() -> None:
    outcome = conclude(probes([(math.nan, 0.0, 0.0)], "non_finite"), selection(), None)
    assert (outcome.state, outcome.stopped_by, outcome.feasible) == ("PRUNED", "non_finite", False)
    assert outcome.violations == {"retain_drop": WORST_EXCESS, "general_drop": WORST_EXCESS}
    assert outcome.value == -1.0 - WORST_EXCESS
    assert "diverged" in outcome.reason


def test_a_diverged_trial_ranks_below_one_that_lost_three_nats() -> None:
    lost = guarded([(0.3, 3.0, 0.0)])
    diverged = guarded([(0.3, math.nan, 0.0)])
    assert lost.violations["retain_drop"] == pytest.approx(2.9)
    assert diverged.violations["retain_drop"] == WORST_EXCESS > lost.violations["retain_drop"]
    assert diverged.value < lost.value == pytest.approx(-1.0 - 2.9)
    beyond = guarded([(0.3, 40.0, 0.0)])
    assert beyond.value == diverged.value, "what is lost twice over is not told apart"


def test_divergence_after_a_good_probe_is_complete_with_its_value() -> None:
    outcome = guarded([(0.6, 0.05, 0.0), (math.nan, math.nan, math.nan)])
    assert (outcome.state, outcome.stopped_by) == ("COMPLETE", "non_finite")
    assert (outcome.value, outcome.step, outcome.steps) == (0.6, 1, 2)
    assert outcome.violations == pytest.approx({"retain_drop": -0.05, "general_drop": -0.1})


def test_a_single_non_finite_metric_stays_a_finite_violation() -> None:
    outcome = conclude(probes([(0.5, -math.inf, math.nan)], "budget"), selection(), None)
    assert not outcome.feasible
    assert all(math.isfinite(v) for v in outcome.violations.values())


def test_a_ranking_pruner_prunes_whatever_the_probes() -> None:
    outcome = conclude(probes([(0.2, 0.0, 0.0), (0.3, 0.3, 0.0)]), selection(), RANKED_OUT)
    assert (outcome.state, outcome.stopped_by) == ("PRUNED", "ranking_pruner")
    assert (outcome.value, outcome.feasible, outcome.step, outcome.steps) == (0.2, True, 1, 2)
    assert outcome.reason == "ranks behind"


def test_last_probe_counts_when_that_is_the_rule() -> None:
    rules = selection(select="last")
    good = conclude(probes([(0.9, 0.0, 0.0), (0.5, 0.0, 0.0)], "budget"), rules, None)
    assert (good.value, good.step, good.feasible) == (0.5, 2, True)
    bad = conclude(probes([(0.9, 0.0, 0.0), (0.5, 0.2, 0.0)], "budget"), rules, None)
    assert (bad.step, bad.feasible) == (2, False)


def test_last_probe_counts_also_for_the_guard() -> None:
    outcome = guarded([(0.9, 0.0, 0.0), (0.5, 0.9, 0.0)], select="last")
    assert (outcome.state, outcome.step) == ("PRUNED", 2)


def test_without_constraints_every_finite_probe_is_feasible() -> None:
    outcome = conclude(probes([(0.4, 9.0, 9.0)], "budget"), selection(constraints=[]), None)
    assert (outcome.feasible, outcome.value, dict(outcome.violations)) == (True, 0.4, {})


VALUES = st.one_of(
    st.floats(-1.0, 1.0), st.sampled_from([math.nan, math.inf])
)  # cross-entropy is never -inf


@given(
    st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=6),
    st.sampled_from(["budget", "past_target", "non_finite", None]),
    st.booleans(),
)
def test_every_outcome_can_be_told(
    series: Series, own: StoppedBy | None, is_ranked_out: bool
) -> None:
    """Finite value and violations; infeasible lies below feasible; the guard's states hold."""
    rules, made = selection(), probes(series, own)
    assert rules.retain_guard is not None
    verdict = guard_verdict([p.metrics for p in made], rules.retain_guard)
    verdict = verdict or (RANKED_OUT if is_ranked_out else None)
    outcome = conclude(made, rules, verdict)
    assert math.isfinite(outcome.value)
    assert set(outcome.violations) == {"retain_drop", "general_drop"}
    assert all(math.isfinite(v) for v in outcome.violations.values())
    assert outcome.steps == len(series)
    feasible = [p.metrics["forget_closure"] for p in made if is_feasible(p.metrics, rules)]
    if outcome.feasible:
        assert -1.0 <= outcome.value <= 1.0
        assert all(v <= 0.0 for v in outcome.violations.values())
        assert outcome.value in feasible
    else:
        assert outcome.value <= -1.0
    if outcome.state == "COMPLETE":
        assert outcome.value == max(feasible) if feasible else not outcome.feasible
    if outcome.stopped_by in ("retain_guard", "non_finite"):
        assert (outcome.state == "COMPLETE") == (max(feasible, default=0.0) > 0.0)
    elif outcome.stopped_by == "ranking_pruner":
        assert outcome.state == "PRUNED"
    else:
        assert outcome.state == "COMPLETE"
