"""The study in SQLite proposes: seeded, starting points first, a grid's points once, and the same when reopened."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from analytic_study import GRID, Params, run_trial, spec_of, study_in
from small_sweep import WHY

from tuning.ledger import Ledger
from tuning.space import bind

# Proposals


@pytest.mark.parametrize("name", ["auto", "random", "tpe", "qmc"])
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


def test_a_starting_point_is_a_point_of_the_grid(tmp_path: Path) -> None:
    start = [{"source": "x", "values": {"optimizer.weight_decay": 0.2, "adapter.rank": 8}}]
    spec = spec_of(
        space=GRID,
        start_from=start,
        sampler={"name": "grid"},
        budget={"trials": 20, "max_steps": 1},
    )
    ledger = Ledger(tmp_path, spec, create=True)
    points = ledger.n_points()
    assert points == 6
    proposals = [ledger.ask()[1] for _ in range(points)]
    assert proposals[0] == start[0]["values"]
    assert len({tuple(sorted(p.items())) for p in proposals}) == 6


def test_a_space_with_a_continuous_field_does_not_end(tmp_path: Path) -> None:
    assert Ledger(tmp_path, spec_of(), create=True).n_points() is None
