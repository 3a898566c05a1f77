"""Every sampler and every ranking pruner, on the analytic objective."""

from __future__ import annotations

import random
import sqlite3
import statistics
from pathlib import Path

import optuna
import pytest
from analytic_study import SPACE, closure, run_trial, spec_of
from small_sweep import WHY

from tuning.ledger import Ledger
from tuning.samplers import make_sampler
from tuning.space import bind


@pytest.mark.parametrize(
    ("sampler", "ranking"),
    [
        ("auto", "none"),
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


@pytest.mark.parametrize("name", ["auto", "tpe", "random", "gp", "nsga2"])
def test_samplers_that_draw_are_seeded_by_the_number_of_the_trial(name: str) -> None:
    spec = spec_of(sampler={"name": name, "seed": 1})

    def proposal(number: int) -> float:
        study = optuna.create_study(sampler=make_sampler(spec, number=number))
        return study.ask().suggest_float("x", 0.0, 1.0)

    assert proposal(3) == proposal(3)
    assert len({proposal(n) for n in range(5)}) == 5
