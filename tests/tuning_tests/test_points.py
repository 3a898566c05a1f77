"""A point of the space is tried once: it is known, asked for again, and a finite space comes to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from analytic_study import GRID, RATE, closure, spec_of
from optuna.trial import FrozenTrial, TrialState
from small_sweep import WHY

from tuning.ledger import Ledger
from tuning.points import MOST_POINTS, count_points, mark, points
from tuning.proposals import next_proposal

START = {"source": "a paper", "values": {"optimizer.weight_decay": 0.2, "adapter.rank": 8}}


def test_points_are_every_combination_whose_conditions_hold() -> None:
    exponent = {"categorical": [0.0, 1.0], "when": {"method.adapter_init": "fila"}} | WHY
    space = {
        "fisher.exponent": exponent,
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
        "adapter.rank": {"int": {"low": 4, "high": 8, "step": 4}} | WHY,
    }
    found = list(points(spec_of(space=space)))
    assert len(found) == 2 * (1 + 2)
    assert {"method.adapter_init": "lora", "adapter.rank": 4} in found
    assert count_points(spec_of(space=space)) == 6


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        pytest.param({"categorical": [4, 8, 16]}, 3, id="choices"),
        pytest.param({"int": {"low": 1, "high": 64}}, 64, id="integers"),
        pytest.param({"int": {"low": 1, "high": 64, "log": True}}, 64, id="integers-log"),
        pytest.param(
            {"int": {"low": 1, "high": MOST_POINTS}}, MOST_POINTS, id="as-many-as-counted"
        ),
        pytest.param({"int": {"low": 0, "high": MOST_POINTS}}, None, id="more-than-counted"),
    ],
)
def test_a_dimension_has_so_many_points(dimension: dict[str, Any], expected: int | None) -> None:
    name = "adapter.rank" if "categorical" in dimension else "seed"
    assert count_points(spec_of(space={name: dimension | WHY})) == expected


def test_a_continuous_dimension_has_no_end() -> None:
    spec = spec_of(space={"optimizer.learning_rate": RATE})
    assert count_points(spec) is None and list(points(spec)) == []


def test_a_float_on_a_grid_counts_by_its_place() -> None:
    spec = spec_of(space=GRID)
    made, written = ({"optimizer.weight_decay": v} for v in (0.1 + 2 * 0.1, 0.3))
    assert made != written
    assert mark(spec, made) == mark(spec, written)


POINTS = {
    "optimizer.learning_rate": {"categorical": [1e-4, 1e-3, 1e-2]} | WHY,
    "adapter.rank": {"categorical": [4, 8, 16]} | WHY,
    "adapter.scaling": {"float": {"low": 1.0, "high": 3.0, "step": 1.0}} | WHY,
}


@pytest.mark.parametrize("name", ["tpe", "random", "nsga2"])
def test_27_trials_try_each_of_27_points(name: str) -> None:
    chosen = {"name": name, "seed": 1, "n_startup_trials": 6}
    spec = spec_of(space=POINTS, sampler=chosen, start_from=[])
    trials: list[FrozenTrial] = []
    for number in range(27):
        proposed = next_proposal(spec, trials)
        assert proposed.number == number
        ended = proposed.born()
        ended.state, ended.value = TrialState.COMPLETE, closure(proposed.params)
        ended.datetime_complete = ended.datetime_start
        trials.append(ended)
    assert len({mark(spec, trial.params) for trial in trials}) == 27
    assert next_proposal(spec, trials).number == 27  # nothing is left: a point comes again


def test_a_seed_among_the_searched_fields_repeats_a_configuration(tmp_path: Path) -> None:
    space = {"adapter.rank": {"categorical": [4, 8]} | WHY, "seed": {"categorical": [1, 2]} | WHY}
    ledger = Ledger(tmp_path, spec_of(space=space), create=True)
    found = [ledger.ask()[1] for _ in range(4)]
    assert sorted((p["adapter.rank"], p["seed"]) for p in found) == [(4, 1), (4, 2), (8, 1), (8, 2)]


def test_what_is_left_agrees_with_a_starting_point(tmp_path: Path) -> None:
    """A starting point that leaves a field to the sampler gets the one value of it that was not tried."""
    starts = [{"source": f"paper {n}", "values": {"adapter.rank": 8}} for n in range(3)]
    spec = spec_of(space=GRID, sampler={"name": "random", "seed": 5}, start_from=starts)
    ledger = Ledger(tmp_path, spec, create=True)
    found = [ledger.ask()[1] for _ in range(3)]
    assert {p["adapter.rank"] for p in found} == {8}
    assert len({mark(spec, p) for p in found}) == 3


def test_equal_starting_points_are_one(tmp_path: Path) -> None:
    spec = spec_of(space=GRID, start_from=[START, START | {"source": "another paper"}])
    ledger = Ledger(tmp_path, spec, create=True)
    assert ledger.ask()[1] == START["values"] != ledger.ask()[1]
