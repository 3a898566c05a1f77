"""Advice on sweeps of a known structure: it finds what was put in, and says when there is too little."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sweep import BASE

from core.errors import UserError
from tuning.advice import Advice, advise
from tuning.files import parse_sweep
from tuning.importance import importances
from tuning.knobs import association, cliff, edge_hits, feasible_window, holm, interactions
from tuning.places import place
from tuning.pool import pooled
from tuning.records import DriverFacts, RunFacts, TrialRecord
from tuning.repetition import repetition
from tuning.run import Run

RATE, RANK, WEIGHT = "optimizer.learning_rate", "adapter.rank", "method.retain_weight"

Outcome = Callable[[dict[str, Any]], tuple[float, float]]
"""Parameters of a trial to its closure and its drop; it keeps the limit of 0.1 or breaks it."""


def spec_values(name: str = "known") -> dict[str, Any]:
    space = {
        RATE: {"float": {"low": 1e-5, "high": 1e-2, "log": True}, "why": "wide"},
        RANK: {"categorical": [4, 8, 16, 32], "why": "the paper's"},
        WEIGHT: {"float": {"low": 0.0, "high": 1.0}, "why": "all"},
    }
    return dict(BASE) | {"name": name, "space": space, "start_from": []}


def record(number: int, params: dict[str, Any], closure: float, drop: float) -> TrialRecord:
    feasible = drop <= 0.1
    return TrialRecord(
        number=number,
        state="COMPLETE" if feasible else "PRUNED",
        params=params,
        proposed_by="sampler",
        attempt=1,
        stopped_by="budget" if feasible else "retain_guard",
        reason="made",
        value=closure if feasible else -1.0 - (drop - 0.1),
        feasible=feasible,
        step=4,
        steps=6 if feasible else 2,
        metrics={"forget_closure": closure, "retain_drop": drop, "general_drop": 0.0},
        violations={"retain_drop": drop - 0.1},
        report_metrics=None,
        duration_s=10.0,
        adapter="trials/a" if feasible else None,
        value_interval=(closure - 0.02, closure + 0.02) if feasible else None,
    )


def run_of(trials: Sequence[TrialRecord], name: str = "known", **facts: Any) -> Run:
    identity = facts.pop("identity", {"model": "sha256:a"})
    return Run(
        path=Path("runs") / name,
        spec=parse_sweep(spec_values(name), where="test"),
        trials=tuple(trials),
        facts=RunFacts(identity=identity, rows={}, data_counts={}, baseline={}, report_baseline={}),
        driver=DriverFacts.read({}),
        is_driven=False,
    )


def drawn(n: int, outcome: Outcome, *, seed: int = 0) -> list[TrialRecord]:
    generator = np.random.default_rng(seed)
    found = []
    for number in range(n):
        params = {
            RATE: float(10 ** generator.uniform(-5, -2)),
            RANK: int(generator.choice([4, 8, 16, 32])),
            WEIGHT: float(generator.uniform(0, 1)),
        }
        found.append(record(number, params, *outcome(params)))
    return found


def rate_alone(params: dict[str, Any]) -> tuple[float, float]:
    """A hill of a decade and a half around 3e-4, and a cliff at 3e-3."""
    far = math.log10(params[RATE]) - math.log10(3e-4)
    return max(0.0, 1.0 - (far / 1.2) ** 2), 0.5 if params[RATE] > 3e-3 else 0.02


def rising(params: dict[str, Any]) -> tuple[float, float]:
    """The more rate the better, up to the end of its range."""
    return (math.log10(params[RATE]) + 5.0) / 3.0, 0.0


def chance_alone(params: dict[str, Any]) -> tuple[float, float]:
    """Nothing that was searched decides."""
    generator = np.random.default_rng(int(params[RATE] * 1e12) % 2**31)
    return float(generator.uniform(0.3, 0.9)), 0.0


def guide(trials: Sequence[TrialRecord]) -> Advice:
    return advise(pooled([run_of(trials)]))


def said(found: Advice, section: str, *, shown: bool = True) -> list[str]:
    return [f.text for f in found.findings if f.section == section and f.is_shown is shown]


def test_the_one_parameter_that_matters_is_found_and_the_others_are_not() -> None:
    found = guide(drawn(40, rate_alone))
    (first, *_) = said(found, "mattered")
    assert first.startswith(f"{RATE} mattered")
    assert not [t for t in said(found, "mattered") if t.startswith((RANK, WEIGHT))]


def test_its_window_is_given_in_decades_with_the_trials_it_rests_on() -> None:
    trials = drawn(40, rate_alone)
    good = [t for t in trials if t.feasible and (t.value or 0.0) >= 0.5]
    space = run_of(trials).spec.space
    window = feasible_window(trials, RATE, space[RATE])
    assert window is not None
    assert window.low == min(t.params[RATE] for t in good)
    assert window.high == max(t.params[RATE] for t in good)
    assert window.decades == pytest.approx(math.log10(window.high / window.low))
    assert set(window.good) == {t.number for t in good}


def test_the_cliff_lies_between_the_trials_on_both_sides_of_it() -> None:
    trials = drawn(40, rate_alone)
    found = cliff(trials, RATE, run_of(trials).spec.space[RATE])
    assert found is not None
    assert found.beyond == "above"
    below = max(t.params[RATE] for t in trials if t.feasible)
    above = min(t.params[RATE] for t in trials if not t.feasible)
    assert below < found.at < above
    assert not found.kept_beyond
    assert not found.broken_before
    assert found.chance < 0.01


def test_where_chance_alone_decides_hardly_any_parameter_is_said_to_matter() -> None:
    space = run_of([]).spec.space
    found = list[float]()
    for seed in range(20):
        trials = drawn(30, chance_alone, seed=seed)
        found += holm({n: association(trials, n, space[n]) or 0.0 for n in space}).values()
    assert sum(chance <= 0.05 for chance in found) <= 3  # one sweep in twenty is expected


def test_good_trials_at_the_end_of_a_range_ask_for_a_wider_one() -> None:
    trials = drawn(40, rising)
    found = guide(trials)
    assert any("upper end" in text and RATE in text for text in said(found, "windows"))
    space = found.next_sweep["space"][RATE]["float"]
    assert space["high"] > 1e-2
    assert not edge_hits(trials, WEIGHT, run_of(trials).spec.space[WEIGHT])


def test_two_parameters_that_only_work_together_are_found() -> None:
    def together(params: dict[str, Any]) -> tuple[float, float]:
        rate = (math.log10(params[RATE]) + 5.0) / 3.0
        return 0.5 + 1.6 * (rate - 0.5) * (params[WEIGHT] - 0.5), 0.0

    trials = drawn(40, together)
    space = run_of(trials).spec.space
    best = min(interactions(trials, space, list(space)), key=lambda i: i.chance)
    assert {best.first, best.second} == {RATE, WEIGHT}
    assert best.sign == 1
    assert best.chance < 0.01


def test_three_trials_are_not_enough_evidence_of_anything() -> None:
    found = guide(drawn(3, rate_alone))
    for section in ("mattered", "cliffs", "together"):
        assert not said(found, section)
        assert all("ot enough evidence" in text for text in said(found, section, shown=False))


def test_every_sentence_names_trials_of_the_run() -> None:
    found = guide(drawn(40, rate_alone))
    numbers = {str(n) for n in range(40)}
    assert all(f.trials and set(f.trials) <= numbers for f in found.findings)


def test_the_next_sweep_is_valid_holds_all_good_trials_and_starts_from_the_best() -> None:
    trials = drawn(40, rate_alone)
    found = guide(trials)
    spec = parse_sweep(found.next_sweep, where="next")
    window = feasible_window(trials, RATE, run_of(trials).spec.space[RATE])
    assert window is not None
    range_ = spec.space[RATE].float_range
    assert range_ is not None
    assert 1e-5 < range_.low <= window.low
    assert window.high <= range_.high < 1e-2
    assert spec.space[RATE].source == "this run: known"
    assert dict(spec.start_from[0].values) == dict(found.recommended or {})


def test_trials_that_were_spent_in_vain_are_counted_with_their_time() -> None:
    trials = drawn(20, rate_alone)
    lost = [t for t in trials if not t.feasible]
    (text,) = [t for t in said(guide(trials), "wasted") if "broke a limit" in t]
    assert text.startswith(f"{len(lost)} of 20 trials")
    assert f"{100 * len(lost) / 20:.1f} %" in text


@pytest.mark.parametrize(
    ("changes", "said_of_it"),
    [
        pytest.param(
            {"stopped_by": "retain_guard"},
            "broke a limit before any probe had both forgotten and kept every limit",
            id="forgot-much-at-a-probe-that-broke-a-limit",
        ),
        pytest.param(
            {"state": "COMPLETE", "stopped_by": "past_target"},
            "ended without a probe that kept every limit",
            id="stopped-itself-long-before-its-last-step",
        ),
        pytest.param(
            {"state": "COMPLETE", "stopped_by": "no_effect"}, "stayed without effect", id="idle"
        ),
        pytest.param({"state": "FAIL", "value": None}, "failed", id="broke"),
    ],
)
def test_what_was_spent_in_vain_is_said_of_each_trial_once_and_no_more_than_is_known(
    changes: dict[str, Any], said_of_it: str
) -> None:
    params = {RATE: 1e-3, RANK: 8, WEIGHT: 0.5}
    lost = replace(record(0, params, 0.9, 0.5), **changes)
    found = guide([lost, record(1, params, 0.5, 0.0)])
    assert said(found, "wasted") == [
        f"1 of 2 trials {said_of_it}, 50.0 % of the time of all trials (10 s)."
    ]


def test_a_trial_that_a_ranking_pruner_stopped_is_not_said_to_have_forgotten() -> None:
    params = {RATE: 1e-3, RANK: 8, WEIGHT: 0.5}
    pruned = replace(record(0, params, 0.0, 0.0), state="PRUNED", stopped_by="ranking_pruner")
    (text,) = said(guide([pruned, record(1, params, 0.5, 0.0)]), "wasted")
    assert text == (
        "None of 2 trials stayed without effect, broke a limit before any probe had both forgotten and kept every "
        "limit, ended without a probe that kept every limit, or failed."
    )


CONDITIONAL = {
    "method.forget_loss": {"categorical": ["ihl", "npo"], "why": "two families"},
    "method.npo.beta": {
        "float": {"low": 0.05, "high": 0.5},
        "when": {"method.forget_loss": "npo"},
        "why": "NPO alone has it",
    },
}


def with_fields(
    run: Run, fields: Mapping[str, Any], of_trial: Callable[[int], dict[str, Any]]
) -> Run:
    """The run as if it had searched these fields, too, with what each trial has of them."""
    values = run.spec.plain()
    fixed = {k: v for k, v in values["method"].items() if f"method.{k}" not in fields}
    changes = {"method": fixed, "space": values["space"] | fields}
    return replace(
        run,
        spec=parse_sweep(values | changes, where="test"),
        trials=tuple(replace(t, params=dict(t.params) | of_trial(t.number)) for t in run.trials),
    )


def conditional(n: int) -> Run:
    """Every other trial is NPO's and has a beta."""

    def of_trial(number: int) -> dict[str, Any]:
        is_npo = {"method.forget_loss": "npo", "method.npo.beta": 0.05 + number / 100}
        return is_npo if number % 2 else {"method.forget_loss": "ihl"}

    return with_fields(run_of(drawn(n, rate_alone)), CONDITIONAL, of_trial)


def test_a_field_that_some_trials_lack_is_said_not_to_be_judged() -> None:
    found = advise(pooled([conditional(40)]))
    (text,) = [t for t in said(found, "mattered", shown=False) if t.startswith("Not judged")]
    assert text == "Not judged: method.npo.beta (only 20 of 40 finished trials have it)."
    assert any(t.startswith("Shares of these parameters") for t in said(found, "mattered"))


def test_a_field_that_never_varied_and_one_of_some_runs_are_said_not_to_be_judged() -> None:
    same = [replace(t, params=dict(t.params) | {RANK: 8}) for t in drawn(12, rate_alone)]
    one = run_of(same, "one")
    dropout = {"adapter.dropout": {"float": {"low": 0.0, "high": 0.5}, "why": "only here"}}
    two = with_fields(run_of(same, "two"), dropout, lambda number: {"adapter.dropout": number / 30})
    (text,) = [
        t for t in said(advise(pooled([one, two])), "mattered", shown=False) if "Not judged" in t
    ]
    assert text == (
        f"Not judged: {RANK} (the same in all of them), adapter.dropout (only some of the runs search it)."
    )


def test_the_fields_that_are_counted_are_those_that_the_trials_must_be_enough_for() -> None:
    """Fourteen trials are enough for the four fields that all have, and would not be for all five."""
    assert importances(conditional(14).spec.space, conditional(14).trials) is not None
    found = advise(pooled([conditional(13)]))
    (text, *_) = said(found, "mattered", shown=False)
    assert text == (
        "Not enough evidence which parameters mattered: 13 trials finished, and 14 are needed for 4 parameters that "
        "differ between them."
    )


def test_where_nothing_was_good_every_sentence_still_names_its_trials() -> None:
    found = guide(drawn(10, lambda params: (0.5, 0.4)))
    unknown = [f for f in found.findings if "where" in f.text and not f.is_shown]
    assert unknown
    assert {f.trials for f in unknown} == {tuple(map(str, range(10)))}
    assert all(f.trials for f in found.findings)


def test_without_a_finished_trial_that_alone_is_said_of_what_mattered() -> None:
    failed = [replace(t, state="FAIL", value=None) for t in drawn(2, rate_alone)]
    found = guide(failed)
    assert said(found, "mattered", shown=False) == [
        "Not enough evidence which parameters mattered: no trial finished."
    ]
    assert all(f.trials for f in found.findings)


def test_runs_on_one_model_are_read_together_and_their_trials_named_by_run() -> None:
    one, two = drawn(12, rate_alone), drawn(12, rate_alone, seed=1)
    pool = pooled([run_of(one, "one"), run_of(two, "two")])
    assert len(pool.trials) == 24
    assert pool.label(3) == "one 3"
    assert pool.label(15) == "two 3"
    assert advise(pool).n_trials == 24


def test_runs_on_different_models_are_refused_with_what_differs() -> None:
    trials = drawn(4, rate_alone)
    runs = [run_of(trials, "one"), run_of(trials, "two", identity={"model": "sha256:b"})]
    with pytest.raises(UserError, match="two: differs from .*one in model"):
        pooled(runs)


def test_a_run_given_twice_is_refused() -> None:
    run = run_of(drawn(4, rate_alone))
    with pytest.raises(UserError, match="given twice"):
        pooled([run, run])


def test_a_run_that_repeats_over_seeds_is_refused_with_what_to_give(sample_run: Run) -> None:
    again = replace(sample_run, spec=repetition(sample_run, top=2, seeds=2))
    with pytest.raises(UserError, match="give the run that it repeats"):
        pooled([sample_run, again])


def test_importances_add_up_and_lie_within_their_intervals() -> None:
    trials = drawn(30, rate_alone)
    found = importances(run_of(trials).spec.space, trials)
    assert found is not None
    for estimates in (found.fanova, found.ped_anova):
        assert sum(e.value for e in estimates.values()) == pytest.approx(1.0)
        assert all(0.0 <= e.low <= e.value <= e.high <= 1.0 for e in estimates.values())
    assert next(iter(found.fanova)) == RATE


def test_a_choice_that_never_works_is_told_from_one_that_does() -> None:
    trials = drawn(40, lambda params: (0.9 if params[RANK] >= 16 else 0.0, 0.0))
    chance = association(trials, RANK, run_of(trials).spec.space[RANK])
    assert chance is not None
    assert chance < 0.01
    assert 4 not in guide(trials).next_sweep["space"][RANK]["categorical"]


def test_places_follow_the_scale_on_which_a_field_is_searched() -> None:
    space = run_of([]).spec.space
    assert place(10**-3.5, space[RATE]) == pytest.approx(0.5)
    assert place(0.5, space[WEIGHT]) == pytest.approx(0.5)
    assert place(8, space[RANK]) == pytest.approx(1 / 3)


def test_holm_multiplies_the_smallest_chance_by_the_number_of_tests() -> None:
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
