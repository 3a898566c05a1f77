"""A sweep whose driver was killed, between any two writes, goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from analytic_study import SPACE, spec_of, study_in
from driven_sweep import conclusions, drive, every_kill, unsynced
from small_sweep import WHY

from tuning.committed import committed_probes
from tuning.config import SweepSpec
from tuning.ranking import ranked
from tuning.records import LEDGER_FILE, attempt_folder, read_ledger

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
        assert len(kills) > 8 * spec.budget.trials
        for n, killed in enumerate(kills):
            begun = len(conclusions(killed)) if (killed / LEDGER_FILE).exists() else 0
            is_whole = n % 10 == 0 or begun == spec.budget.trials
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


@pytest.mark.parametrize("skips", [False, True], ids=["every-probe", "skipping"])
@pytest.mark.parametrize("metric", ["forget_closure", "drop_at_target"])
def test_a_kill_of_a_sweep_whose_trials_land_changes_nothing(
    tmp_path: Path, metric: str, skips: bool
) -> None:
    """Trials land at the end of their budget, and before the guard stops them; one stays far from its target."""
    starts = [
        {"source": "here", "values": {"optimizer.learning_rate": rate, "adapter.rank": 16}}
        for rate in (2e-3, 4e-3, 2e-5)
    ]
    budget = {"trials": 3, "max_steps": 4, "skip_probes": skips}
    spec = sweep("tpe", "none", objective={"metric": metric}, start_from=starts, budget=budget)
    with unsynced():
        expected, kills = driven(spec, tmp_path)
        for killed in kills[::6]:
            drive(spec, killed)
            assert conclusions(killed) == expected, killed.name
    metrics = [json.loads(trial["recorded.metrics"]) for trial in expected]
    assert ["landing_factor" in found for found in metrics] == [True, True, False]
    stops = [json.loads(trial["recorded.stopped_by"]) for trial in expected]
    assert stops == ["budget", "retain_guard", "budget"]
    assert [trial["state"] for trial in expected] == ["COMPLETE"] * 3
    run_dir = tmp_path / "whole"
    far = committed_probes(run_dir / attempt_folder(2, 1))
    assert [p.step for p in far] == ([1, 2, 4] if skips else [1, 2, 3, 4])
    assert [p.is_overtaken for p in far][:2] == [skips, False]
    trials, _driver = read_ledger(run_dir / LEDGER_FILE)
    best_first = [trial.number for trial in ranked(trials)]
    assert set(best_first[:2]) == {0, 1} and best_first[2] == 2
    if metric == "drop_at_target":
        assert [trial.value for trial in trials[:2]] == [0.02, 0.02]
        assert trials[2].value == 2.0 - trials[2].metrics["forget_closure"]
    study = study_in(run_dir)
    assert study.direction.name == spec.objective.direction.upper()
    assert study.best_trial.number in (0, 1)


def driven(
    spec: SweepSpec, folder: Path, at_once: int = 1
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Conclusions of a sweep that nobody kills, and what each kill would have left."""
    whole = folder / "whole"
    whole.mkdir()
    with every_kill(whole, folder / "kills") as kills:
        drive(spec, whole, at_once=at_once)
    return conclusions(whole), kills.taken
