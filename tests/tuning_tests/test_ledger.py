"""The study in SQLite: seeded proposals, guard verdicts per attempt, one telling, and reopening anywhere.

Trials have an analytic objective with a known optimum, so that nothing here trains.
"""

from __future__ import annotations

import itertools
import math
import random
import sqlite3
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from core.measuring.selection import Probe, StoppedBy
from tuning.config import Choice, SweepSpec, parse_sweep
from tuning.ledger import Ledger, make_sampler
from tuning.objective import Outcome, conclude
from tuning.space import bind, corner_proposals

WHY = {"why": "it matters"}
RATE = {"float": {"low": 1e-5, "high": 1e-2, "log": True}} | WHY
SPACE: Mapping[str, Any] = {
    "optimizer.learning_rate": RATE,
    "adapter.rank": {"categorical": [4, 8, 16]} | WHY,
}
GRID: Mapping[str, Any] = {
    "optimizer.weight_decay": {"float": {"low": 0.1, "high": 0.3, "step": 0.1}} | WHY,
    "adapter.rank": {"int": {"low": 4, "high": 8, "step": 4}} | WHY,
}
Params = Mapping[str, Choice]


def spec_of(**changes: Any) -> SweepSpec:
    values: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "model": {"source": "package:smollm2"},
        "data": {
            role: {"source": f"embedded:{role}"}
            for role in ("forget", "retain", "approximate", "general")
        },
        "method": {"forget_loss": "ihl"},
        "space": SPACE,
        "budget": {"trials": 8, "max_steps": 3},
        "sampler": {"name": "random", "seed": 5},
        "pruning": {"retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0}},
    }
    if "space" in changes and "optimizer.learning_rate" not in changes["space"]:
        values["optimizer"] = {"learning_rate": 1e-3}
    return parse_sweep(values | changes, where="test")


def probe(
    step: int, closure: float, drop: float = 0.0, stopped_by: StoppedBy | None = None
) -> Probe:
    metrics = {
        "forget_closure": closure,
        "retain_drop": drop,
        "general_drop": 0.0,
        "forget_nll": 1.0 + closure,
    }
    return Probe(step=step, metrics=metrics, seconds=float(step), stopped_by=stopped_by)


def outcome_of(spec: SweepSpec, probes: Sequence[Probe], verdict: Any = None) -> Outcome:
    selection = bind(spec, next(corner_proposals(spec)), where="test").selection
    return conclude(probes, selection, verdict)


def closure(params: Params) -> float:
    """1 at a learning rate of 1e-3 and rank 16; falls on both sides."""
    distance = abs(math.log10(float(params["optimizer.learning_rate"])) + 3.0)
    return 1.0 - 0.5 * distance - 0.1 * (params["adapter.rank"] != 16)


def run_trial(
    ledger: Ledger, spec: SweepSpec, value: Callable[[Params], float] = closure
) -> Params:
    """Ask, report a rising series (with damage at large rates), and finish."""
    number, params = ledger.ask()
    attempt = ledger.begin_attempt(number)
    probes: list[Probe] = []
    verdict = None
    for step in range(1, spec.budget.max_steps + 1):
        is_last = step == spec.budget.max_steps
        drop = 0.9 if float(params.get("optimizer.learning_rate", 0.0)) > 5e-3 else 0.0
        reached = value(params) * step / spec.budget.max_steps
        probes.append(probe(step, reached, drop, "budget" if is_last else None))
        verdict = ledger.report(number, attempt, probes)
        if verdict:
            break
    ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
    return params


def study_in(run_dir: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{run_dir / 'ledger.db'}")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    both = tmp_path / "one", tmp_path / "two"
    for folder in both:
        folder.mkdir()
    return both


# Proposals


@pytest.mark.parametrize("name", ["random", "tpe", "qmc"])
def test_a_reopened_ledger_proposes_what_one_that_stayed_open_would(
    folders: tuple[Path, Path], name: str
) -> None:
    spec = spec_of(
        sampler={"name": name, "seed": 5, "n_startup_trials": 2},
        budget={"trials": 8, "max_steps": 1},
    )
    stayed = Ledger(folders[0], spec, create=True)
    series = [run_trial(stayed, spec) for _ in range(4)]
    Ledger(folders[1], spec, create=True)
    again = [run_trial(Ledger(folders[1], spec, create=False), spec) for _ in range(4)]
    assert again == series
    assert len({p["optimizer.learning_rate"] for p in series}) == 4


def test_trials_asked_for_at_the_same_time_differ(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    rates = [ledger.ask()[1]["optimizer.learning_rate"] for _ in range(4)]
    assert len(set(rates)) == 4


def test_another_seed_proposes_other_points(folders: tuple[Path, Path]) -> None:
    one, two = (
        Ledger(folder, spec_of(sampler={"name": "random", "seed": seed}), create=True).ask()[1]
        for folder, seed in zip(folders, (5, 6), strict=True)
    )
    assert one != two


def test_starting_points_come_first_and_are_marked(tmp_path: Path) -> None:
    starts = [
        {"source": "a", "values": {"adapter.rank": 16, "optimizer.learning_rate": 2e-4}},
        {"source": "b", "values": {"adapter.rank": 8}},
    ]
    spec = spec_of(
        start_from=starts,
        sampler={"name": "tpe", "n_startup_trials": 3},
        budget={"trials": 5, "max_steps": 1},
    )
    ledger = Ledger(tmp_path, spec, create=True)
    params = [run_trial(ledger, spec) for _ in range(4)]
    assert params[0] == starts[0]["values"]
    assert params[1]["adapter.rank"] == 8
    assert 1e-5 <= float(params[1]["optimizer.learning_rate"]) <= 1e-2
    trials = study_in(tmp_path).trials
    assert [t.user_attrs["proposed_by"] for t in trials] == [
        "start_from",
        "start_from",
        "startup",
        "sampler",
    ]
    assert [t.user_attrs.get("source") for t in trials] == ["a", "b", None, None]


def test_a_starting_point_keeps_its_number_when_the_ledger_is_reopened(tmp_path: Path) -> None:
    starts = [{"source": s, "values": {"adapter.rank": r}} for s, r in (("a", 16), ("b", 8))]
    spec = spec_of(start_from=starts)
    assert Ledger(tmp_path, spec, create=True).ask()[1]["adapter.rank"] == 16
    number, params = Ledger(tmp_path, spec, create=False).ask()
    assert (number, params["adapter.rank"]) == (1, 8)
    assert Ledger(tmp_path, spec, create=False).n_begun() == 2


def test_a_conditional_field_is_proposed_under_its_condition_only(tmp_path: Path) -> None:
    space = {
        "fisher.exponent": {
            "float": {"low": 0.0, "high": 1.0},
            "when": {"method.adapter_init": "fila"},
        }
        | WHY,
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
    }
    spec = spec_of(
        space=space,
        sampler={"name": "tpe", "seed": 1, "n_startup_trials": 3},
        budget={"trials": 8, "max_steps": 1},
    )
    ledger = Ledger(tmp_path, spec, create=True)

    def value(params: Params) -> float:
        return float(params.get("fisher.exponent", 0.1))

    proposals = [run_trial(ledger, spec, value) for _ in range(8)]
    assert {p["method.adapter_init"] for p in proposals} == {"lora", "fila"}
    for proposal in proposals:
        assert ("fisher.exponent" in proposal) == (proposal["method.adapter_init"] == "fila")
        bind(spec, proposal, where="test")


def test_qmc_draws_a_conditional_field_anew_for_each_trial(tmp_path: Path) -> None:
    space = {
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
        "fisher.exponent": {
            "float": {"low": 0.0, "high": 1.0},
            "when": {"method.adapter_init": "fila"},
        }
        | WHY,
    }
    start = [
        {"source": "x", "values": {"method.adapter_init": "lora"}}
    ]  # the first has no exponent
    spec = spec_of(
        space=space, start_from=start, sampler={"name": "qmc"}, budget={"trials": 7, "max_steps": 1}
    )
    ledger = Ledger(tmp_path, spec, create=True)
    proposals = [run_trial(ledger, spec, lambda _: 0.1) for _ in range(7)]
    exponents = [p["fisher.exponent"] for p in proposals if "fisher.exponent" in p]
    assert len(exponents) >= 2
    assert len(set(exponents)) == len(exponents)


# A grid


def test_a_grid_gives_each_point_once_also_across_reopening(tmp_path: Path) -> None:
    spec = spec_of(space=GRID, sampler={"name": "grid"}, budget={"trials": 20, "max_steps": 1})
    ledger = Ledger(tmp_path, spec, create=True)
    assert ledger.n_points() == 6
    proposals = [run_trial(ledger, spec, lambda _: 0.1) for _ in range(2)]
    ledger = Ledger(tmp_path, spec, create=False)
    pending = ledger.ask()[1]  # runs while the others are asked for
    proposals += [pending] + [run_trial(ledger, spec, lambda _: 0.1) for _ in range(3)]
    found = {(round(float(p["optimizer.weight_decay"]), 9), p["adapter.rank"]) for p in proposals}
    assert found == set(itertools.product([0.1, 0.2, 0.3], [4, 8]))
    assert all(float(p["optimizer.weight_decay"]) <= 0.3 for p in proposals)
    assert ledger.n_begun() == ledger.n_points()


def test_starting_points_count_beside_the_grid(tmp_path: Path) -> None:
    start = [{"source": "x", "values": {"optimizer.weight_decay": 0.2, "adapter.rank": 8}}]
    spec = spec_of(
        space=GRID,
        start_from=start,
        sampler={"name": "grid"},
        budget={"trials": 20, "max_steps": 1},
    )
    ledger = Ledger(tmp_path, spec, create=True)
    points = ledger.n_points()
    assert points == 7
    proposals = [ledger.ask()[1] for _ in range(points)]
    assert proposals[0] == start[0]["values"]
    assert len({tuple(sorted(p.items())) for p in proposals[1:]}) == 6


def test_other_samplers_do_not_end(tmp_path: Path) -> None:
    assert Ledger(tmp_path, spec_of(), create=True).n_points() is None


# Reports and the guard


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


@pytest.mark.parametrize("ranking", ["none", "median"])
def test_a_replay_after_a_crash_gives_the_verdicts_that_were_given_before_it(
    tmp_path: Path, ranking: str
) -> None:
    pruning = {"retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0}}
    spec = spec_of(pruning=pruning | {"ranking": ranking, "startup_trials": 0, "warmup_steps": 0})
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


# Telling


def test_a_complete_trial_holds_value_constraints_and_reason(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, params = ledger.ask()
    probes = [probe(1, 0.4, 0.04), probe(2, 0.3, stopped_by="budget")]
    attempt = ledger.begin_attempt(number)
    for n in (1, 2):
        ledger.report(number, attempt, probes[:n])
    outcome = outcome_of(spec, probes)
    for _ in range(2):  # a crash may repeat it
        ledger.finish(number, outcome, adapter="trials/0000/attempt-1/adapter", duration_s=3.5)
    assert ledger.running() == []
    trial = study_in(tmp_path).trials[number]
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.4)
    assert trial.constraints == pytest.approx({"retain_drop": -0.06, "general_drop": -0.1})
    found = trial.user_attrs
    assert (found["stopped_by"], found["feasible"], found["step"], found["steps"]) == (
        "budget",
        True,
        1,
        2,
    )
    assert (found["adapter"], found["duration_s"]) == ("trials/0000/attempt-1/adapter", 3.5)
    assert found["params"] == dict(params) == trial.params


def test_a_pruned_trial_holds_the_constraints_it_broke(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    probes = [probe(1, 0.4, 0.9)]
    verdict = ledger.report(number, ledger.begin_attempt(number), probes)
    ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
    trial = study_in(tmp_path).trials[number]
    assert trial.state.name == "PRUNED"
    assert trial.constraints == pytest.approx({"retain_drop": 0.8, "general_drop": -0.1})


def test_a_finished_trial_keeps_its_state(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    done = [probe(1, 0.4, stopped_by="budget")]
    ledger.report(number, ledger.begin_attempt(number), done)
    ledger.finish(number, outcome_of(spec, done), adapter=None, duration_s=1.0)
    broken = [probe(1, 0.4, math.nan, stopped_by="non_finite")]
    with pytest.raises(ValueError, match="trial 0 is COMPLETE already, cannot become PRUNED"):
        ledger.finish(number, outcome_of(spec, broken), adapter=None, duration_s=1.0)
    ledger.fail(number, "too late")
    trial = study_in(tmp_path).trials[number]
    assert trial.state.name == "COMPLETE" and "too late" not in str(trial.user_attrs)


def test_a_failed_trial_holds_its_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec_of(), create=True)
    number, _ = ledger.ask()
    ledger.begin_attempt(number)
    ledger.fail(number, "out of memory")
    trial = study_in(tmp_path).trials[number]
    assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", "out of memory")
    assert ledger.running() == []


def test_running_trials_are_what_a_resume_runs_again(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    run_trial(ledger, spec)
    begun = [ledger.ask() for _ in range(2)]
    ledger.begin_attempt(begun[1][0])
    found = Ledger(tmp_path, spec, create=False).running()
    assert found == [(*begun[0], 0), (*begun[1], 1)]
    assert ledger.n_begun() == 3


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc"])
def test_a_trial_whose_driver_died_while_asking_is_completed_under_its_number(
    folders: tuple[Path, Path], sampler: str
) -> None:
    space = GRID if sampler == "grid" else SPACE
    spec = spec_of(sampler={"name": sampler, "seed": 5, "n_startup_trials": 2}, space=space)
    whole, broken = (Ledger(folder, spec, create=True) for folder in folders)
    expected = [whole.ask() for _ in range(3)]
    assert broken.ask() == expected[0]
    study = study_in(folders[1])
    study.sampler = make_sampler(spec, number=1)
    study.ask()  # the driver dies here, before it names the parameters
    broken = Ledger(folders[1], spec, create=False)
    assert broken.n_begun() == 1
    broken.finish_births()
    assert broken.n_begun() == 2
    assert [(n, p) for n, p, _ in broken.running()] == expected[:2]
    assert broken.ask() == expected[2]


def test_notes_are_kept(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    ledger.set_note("identity", {"model": "sha256:1", "loss": math.nan})
    assert Ledger(tmp_path, spec, create=False).note("identity") == {
        "model": "sha256:1",
        "loss": "nan",
    }
    assert ledger.note("nothing") is None


def test_a_second_study_of_the_same_name_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, spec_of(), create=True)
    with pytest.raises(optuna.exceptions.DuplicatedStudyError, match="already exists"):
        Ledger(tmp_path, spec_of(), create=True)


def test_a_missing_study_is_not_made_by_opening(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="Record does not exist"):
        Ledger(tmp_path, spec_of(), create=False)


# Every sampler and every ranking pruner, on the analytic objective


@pytest.mark.parametrize(
    ("sampler", "ranking"),
    [
        ("tpe", "none"),
        ("random", "median"),
        ("grid", "successive_halving"),
        ("qmc", "hyperband"),
        ("gp", "median"),
        ("nsga2", "hyperband"),
    ],
)
def test_every_sampler_and_pruner_works_through_a_sweep(
    tmp_path: Path, sampler: str, ranking: str
) -> None:
    grid = {
        "optimizer.learning_rate": {"categorical": [1e-5, 1e-4, 1e-3, 1e-2]} | WHY,
        "adapter.rank": {"categorical": [4, 16]} | WHY,
    }
    spec = spec_of(
        space=grid if sampler == "grid" else SPACE,
        sampler={"name": sampler, "seed": 3, "n_startup_trials": 3},
        pruning={
            "retain": {"limit": 0.1, "hard_limit": 0.5},
            "ranking": ranking,
            "startup_trials": 2,
            "warmup_steps": 1,
        },
    )
    ledger = Ledger(tmp_path, spec, create=True)
    for _ in range(8):
        bind(spec, run_trial(ledger, spec), where="test")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        states = [s for (s,) in database.execute("SELECT state FROM trials ORDER BY number")]
    database.close()
    assert len(states) == 8 and set(states) <= {"COMPLETE", "PRUNED"}
    assert "COMPLETE" in states
    assert ledger.running() == []


def test_tpe_finds_the_optimum_better_than_random_search(tmp_path: Path) -> None:
    """20 trials; random search is computed directly, 301 times, on the same objective."""
    trials = 20
    spec = spec_of(
        sampler={"name": "tpe", "seed": 2, "n_startup_trials": 5},
        budget={"trials": trials, "max_steps": 1},
    )
    ledger = Ledger(tmp_path, spec, create=True)
    found = [run_trial(ledger, spec) for _ in range(trials)]
    rng = random.Random(0)

    def at_random() -> float:
        rate, rank = 10 ** rng.uniform(-5, -2), rng.choice([4, 8, 16])
        return closure({"optimizer.learning_rate": rate, "adapter.rank": rank})

    typical = statistics.median(max(at_random() for _ in range(trials)) for _ in range(301))
    reached = max(closure(p) for p in found if float(p["optimizer.learning_rate"]) <= 5e-3)
    assert reached > typical
    assert reached > 0.9


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsga2"])
def test_samplers_that_draw_are_seeded_by_the_number_of_the_trial(name: str) -> None:
    spec = spec_of(sampler={"name": name, "seed": 1})

    def proposal(number: int) -> float:
        study = optuna.create_study(sampler=make_sampler(spec, number=number))
        return study.ask().suggest_float("x", 0.0, 1.0)

    assert proposal(3) == proposal(3)
    assert len({proposal(n) for n in range(5)}) == 5
