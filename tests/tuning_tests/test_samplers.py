"""Every sampler and every ranking pruner that a sweep file can name, and what each must keep to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from analytic_study import GRID, RATE, Params, run_trial, study_in
from analytic_study import spec_of as analytic_spec
from optuna.trial import TrialState
from small_sweep import WHY

from tuning.config import PruningSpec, RankingName, SamplerName, SamplerSpec, SweepSpec
from tuning.dry_run import sample_proposals
from tuning.ledger import Ledger
from tuning.points import mark
from tuning.pruning import RANKINGS
from tuning.samplers import (
    MANY,
    SAMPLERS,
    is_fitted,
    make_sampler,
    propose,
)
from tuning.space import bind

NAMES = get_args(SamplerName)
START = {"source": "a paper", "values": {"optimizer.weight_decay": 0.2, "adapter.rank": 8}}


def spec_of(sampler: str, **changes: Any) -> SweepSpec:
    """A sweep over a space that every sampler takes."""
    chosen = {"name": sampler, "seed": 5, "n_startup_trials": 2}
    return analytic_spec(space=GRID, sampler=chosen, **changes)


def value(params: Params) -> float:
    return 1.0 - float(params["optimizer.weight_decay"])


def test_every_name_of_a_sweep_file_has_an_entry() -> None:
    assert SAMPLERS.keys() == set(NAMES)
    assert RANKINGS.keys() == set(get_args(RankingName))


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_goes_through_and_extends(tmp_path: Path, name: str) -> None:
    spec = spec_of(name, start_from=[START])
    ledger = Ledger(tmp_path, spec, create=True)
    found = [run_trial(ledger, spec, value) for _ in range(3)]
    again = Ledger(tmp_path, spec, create=False)
    found += [run_trial(again, spec, value) for _ in range(3)]
    assert found[0] == START["values"]
    trials = study_in(tmp_path).trials
    assert [t.params for t in trials] == found
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for params in found:
        bind(spec, params, where="test")


@pytest.mark.parametrize("name", NAMES)
def test_a_proposal_depends_on_study_and_number_alone(name: str) -> None:
    spec = spec_of(name)

    def proposals() -> list[Mapping[str, Any]]:
        study = optuna.create_study(direction="maximize")
        found: list[Mapping[str, Any]] = []
        for number in range(4):
            study.sampler = make_sampler(spec, number=number)
            trial = study.ask()
            found.append(propose(trial, spec))
            study.tell(trial, 0.5)
        return found

    first = proposals()
    assert first == proposals()
    assert all(set(p) == set(GRID) for p in first)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_shows_what_the_sweep_begins_with(tmp_path: Path, name: str) -> None:
    spec = spec_of(name, start_from=[START])
    shown = sample_proposals(spec, count=2)
    ledger = Ledger(tmp_path, spec, create=True)
    assert [ledger.ask()[1] for _ in range(2)] == shown


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_fitted_after_the_startup_trials_or_never(name: str) -> None:
    spec = spec_of(name)
    study = optuna.create_study(direction="maximize")
    told = []
    for state in (TrialState.FAIL, TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE):
        trial = study.ask()
        study.tell(trial, 0.5 if state is TrialState.COMPLETE else None, state=state)
        told.append(is_fitted(spec.sampler, study))
    has_model = name in ("auto", "tpe", "gp", "nsga2")
    assert told == [False, False, has_model, has_model]


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_space_ends_under_every_sampler(tmp_path: Path, name: str) -> None:
    spec = spec_of(name, start_from=[START])
    ledger = Ledger(tmp_path, spec, create=True)
    assert ledger.n_points() == 6  # the starting point is one of them
    found = {mark(spec, ledger.ask()[1]) for _ in range(6)}
    assert len(found) == 6
    assert (ledger.n_begun(), ledger.n_points()) == (6, 6)


@pytest.mark.parametrize("name", get_args(RankingName))
def test_a_ranking_pruner_does_not_stop_the_only_trial(tmp_path: Path, name: RankingName) -> None:
    spec = spec_of("random", pruning={"ranking": name, "startup_trials": 1, "warmup_steps": 1})
    ledger = Ledger(tmp_path, spec, create=True)
    run_trial(ledger, spec, value)
    assert [t.state for t in study_in(tmp_path).trials] == [TrialState.COMPLETE]


def test_each_ranking_is_a_pruner_of_its_own() -> None:
    kinds = {type(make(PruningSpec(ranking=name), 2)) for name, make in RANKINGS.items()}
    assert len(kinds) == len(RANKINGS)


# What `auto` is


def test_a_file_that_names_no_sampler_gets_auto_and_fewer_startup_trials() -> None:
    assert SamplerSpec().name == "auto"
    found = {name: SamplerSpec(name=name).n_startup_trials for name in NAMES}
    assert found == dict.fromkeys(NAMES, 10) | {"auto": 5}
    assert SamplerSpec(n_startup_trials=8).n_startup_trials == 8


@pytest.mark.parametrize(
    ("number", "when", "expected"),
    [
        pytest.param(0, {}, "QMCSampler", id="begins-evenly-spread"),
        pytest.param(5, {}, "GPSampler", id="then-models-a-plain-space"),
        pytest.param(MANY, {}, "TPESampler", id="has-many-trials"),
        pytest.param(5, {"adapter.kind": "lora"}, "TPESampler", id="has-a-conditional-dimension"),
    ],
)
def test_what_auto_is(number: int, when: Mapping[str, str], expected: str) -> None:
    space = {
        "adapter.kind": {"categorical": ["lora", "full"]} | WHY,
        "adapter.rank": {"categorical": [4, 8]} | WHY | ({"when": when} if when else {}),
    }
    spec = analytic_spec(space=space, sampler={"name": "auto", "n_startup_trials": 5})
    assert type(make_sampler(spec, number=number)).__name__ == expected


def test_the_startup_trials_of_auto_are_evenly_spread(tmp_path: Path) -> None:
    """After the first, which is drawn, one in each eighth of the range."""
    chosen = {"name": "auto", "seed": 5, "n_startup_trials": 9}
    spec = analytic_spec(space={"optimizer.learning_rate": RATE}, sampler=chosen)
    ledger = Ledger(tmp_path, spec, create=True)
    found = [run_trial(ledger, spec, lambda params: 0.5) for _ in range(9)]
    rates = [float(params["optimizer.learning_rate"]) for params in found]
    eighths = [int((math.log10(rate) + 5.0) / 3.0 * 8) for rate in rates[1:]]
    assert sorted(eighths) == list(range(8))


# What writing costs


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_only_a_proposal_asks_the_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Optuna's handle of a trial asks the sampler when it is made, or first read, over the whole study."""
    kind = type(make_sampler(spec_of(name), number=0))
    asked: list[str] = []
    for method in ("before_trial", "infer_relative_search_space"):
        original = getattr(kind, method)

        def counted(self: Any, *args: Any, original: Any = original, method: str = method) -> Any:
            asked.append(method)
            return original(self, *args)

        monkeypatch.setattr(kind, method, counted)
    spec = analytic_spec(sampler={"name": name, "seed": 5, "n_startup_trials": 2})
    ledger = Ledger(tmp_path, spec, create=True)
    for _ in range(4):
        run_trial(ledger, spec)
    assert asked.count("before_trial") == 4
    assert asked.count("infer_relative_search_space") == 4


def test_a_trial_of_another_driver_does_not_ask_the_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("tpe")
    number, _ = Ledger(tmp_path, spec, create=True).ask()
    asked: list[int] = []
    original = optuna.samplers.TPESampler.before_trial

    def counted(self: Any, *args: Any) -> None:
        asked.append(number)
        original(self, *args)

    monkeypatch.setattr(optuna.samplers.TPESampler, "before_trial", counted)
    ledger = Ledger(tmp_path, spec, create=False)
    assert [ledger.begin_attempt(number) for _ in range(3)] == [1, 2, 3]
    ledger.fail(number, "it broke")
    assert asked == []
