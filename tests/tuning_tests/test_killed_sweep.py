"""A sweep whose driver was killed, between any two writes, goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from analytic_study import SPACE, spec_of
from driven_sweep import conclusions, drive, every_kill, unsynced
from small_sweep import WHY

from tuning.config import SweepSpec
from tuning.records import LEDGER_FILE

GRID = {
    "optimizer.learning_rate": {"categorical": [1e-4, 1e-3, 5e-3]} | WHY,
    "adapter.rank": {"categorical": [4, 16]} | WHY,
}
START = {"source": "a paper", "values": {"adapter.rank": 16}}


def sweep(sampler: str, ranking: str, **changes: Any) -> SweepSpec:
    """A few short trials, of which the guard and the ranking pruner stop some."""
    pruning = {
        "retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0},
        "ranking": ranking,
        "startup_trials": 1,
        "warmup_steps": 1,
        "reduction_factor": 2,
    }
    values: dict[str, Any] = {
        "space": GRID if sampler == "grid" else SPACE,
        "start_from": [] if sampler == "grid" else [START],
        "sampler": {"name": sampler, "seed": 4, "n_startup_trials": 2},
        "pruning": pruning,
        "budget": {"trials": 3, "max_steps": 3},
    }
    return spec_of(**(values | changes))


@pytest.mark.parametrize(
    ("sampler", "ranking"),
    [
        ("auto", "none"),
        ("tpe", "none"),
        ("random", "median"),
        ("grid", "successive_halving"),
        ("qmc", "hyperband"),
        ("gp", "median"),
        ("nsga2", "successive_halving"),
    ],
)
def test_a_kill_between_any_two_writes_changes_nothing(
    tmp_path: Path, sampler: str, ranking: str
) -> None:
    """Each copy goes on to its next new proposal, which the study as it then is determines; some to the end."""
    spec = sweep(sampler, ranking)
    with unsynced():
        expected, kills = driven(spec, tmp_path)
        assert len(kills) > 25 * spec.budget.trials
        for n, killed in enumerate(kills):
            begun = len(conclusions(killed)) if (killed / LEDGER_FILE).exists() else 0
            is_whole = n % 30 == 0 or begun == spec.budget.trials
            proposed = drive(spec, killed, up_to=None if is_whole else begun)
            shown = conclusions(killed)
            if not is_whole:
                assert proposed == expected[begun]["recorded.params"], killed.name
                shown = shown[:begun]
            assert shown == expected[: len(shown)], killed.name


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_kill_while_two_trials_run_changes_nothing(tmp_path: Path, sampler: str) -> None:
    """Trials of equal length end in the same order after a kill; with them the proposals are the same."""
    budget = {"trials": 4, "max_steps": 2}
    spec = sweep(sampler, "none", pruning={"retain": None}, budget=budget)
    with unsynced():
        expected, kills = driven(spec, tmp_path, at_once=2)
        for killed in kills[::8]:
            drive(spec, killed, at_once=2)
            assert conclusions(killed) == expected, killed.name


def driven(
    spec: SweepSpec, folder: Path, at_once: int = 1
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Conclusions of a sweep that nobody kills, and what each kill would have left."""
    whole = folder / "whole"
    whole.mkdir()
    with every_kill(whole, folder / "kills") as kills:
        drive(spec, whole, at_once=at_once)
    return conclusions(whole), kills.taken
