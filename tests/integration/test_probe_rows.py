"""A trial whose probes read as many rows as they need, beside the same trial with all rows at every probe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TrialMaker
from safetensors.torch import load_file
from two_ranks import spawned

from core.config import TrialConfig
from core.measuring.reporting import GuardReporter
from core.measuring.selection import Probe
from core.store.durable import commit_json, read_lines
from core.training.ranks import join
from core.training.warm import Warm
from core.worker import TrialResult, run_trial
from tuning.committed import committed_probes
from tuning.objective import conclude

pytestmark = pytest.mark.integration

SIZES = {"forget": 8, "retain": 20, "general": 10}
ROWS = {"data.probe_rows": {"retain": 20, "general": 10}}
EVERYTHING = {"selection.rows_per_probe": "all", "selection.skip_probes": False}
SPARING = {"selection.rows_per_probe": "auto", "selection.skip_probes": "auto"}

GUARD = {"limit": 0.1, "hard_limit": 999.0, "grace_steps": 1, "patience": 2}
LANDING: dict[str, Any] = {
    "selection.landing": "auto",
    "selection.max_steps": 12,
    "selection.retain_guard": {"limit": 99.0, "hard_limit": 999.0},
    "selection.constraints": [],
    "optimizer.learning_rate": 6e-3,
    "method.forget_loss": "ga",
    "method.retain_loss": "none",
}
KINDS: Mapping[str, dict[str, Any]] = {
    "to-its-budget": {"selection.max_steps": 6},
    "past-its-target": {"selection.max_steps": 12, "optimizer.learning_rate": 5e-3},
    "stopped-by-the-guard": {
        "optimizer.learning_rate": 1e-3,
        "method.forget_loss": "ga",
        "method.retain_loss": "none",
        "selection.max_steps": 20,
        "selection.past_target": None,
        "selection.retain_guard": GUARD,
    },
    "landed-on-its-target": LANDING | {"selection.past_target": {"patience": 1}},
    "least-drop-at-its-target": LANDING | {"selection.metric": "drop_at_target"},
    "last-probe-counts": {
        "selection.max_steps": 6,
        "selection.select": "last",
        "selection.past_target": None,
    },
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One trial, measured in both ways, and the folder of the sparing one."""

    config: TrialConfig
    whole: TrialResult
    sparing: TrialResult
    folder: Path


def run(config: TrialConfig, folder: Path, warm: Warm) -> TrialResult:
    return run_trial(config, GuardReporter(config.selection), folder=folder, warm=warm)


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest,
    make_trial: TrialMaker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    warm, folder = Warm(), tmp_path_factory.mktemp(request.param)
    changes = ROWS | KINDS[request.param]
    whole = run(make_trial(changes | EVERYTHING), folder / "whole", warm)
    config = make_trial(changes | SPARING)
    sparing = run(config, folder / "sparing", warm)
    return Pair(config=config, whole=whole, sparing=sparing, folder=folder / "sparing")


def n_read(probes: tuple[Probe, ...]) -> int:
    return sum(sum(probe.n_rows.values()) for probe in probes)


def test_it_ends_in_the_same_way_with_the_same_metrics_and_reads_fewer_rows(pair: Pair) -> None:
    """State, reason, step and numbers of the probe that counts are those of all rows."""
    rules = pair.config.selection
    expected, found = (
        conclude(result.probes, rules, result.decision.verdict)
        for result in (pair.whole, pair.sparing)
    )
    assert (found.state, found.stopped_by, found.step, found.steps, found.feasible) == (
        expected.state,
        expected.stopped_by,
        expected.step,
        expected.steps,
        expected.feasible,
    )
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-5)
    assert found.value == pytest.approx(expected.value, abs=1e-5)
    assert found.intervals == {
        name: pytest.approx(ends, abs=1e-4) for name, ends in expected.intervals.items()
    }
    assert n_read(pair.sparing.probes) < n_read(pair.whole.probes)


def test_the_same_adapter_is_left(pair: Pair) -> None:
    folders = [pair.folder.parent / name / "adapter" for name in ("whole", "sparing")]
    saved = [folder / "adapter_model.safetensors" for folder in folders]
    if pair.sparing.best is None:
        assert not saved[1].exists()
        return
    expected, found = (load_file(path) for path in saved)
    assert found.keys() == expected.keys()
    factor = pair.sparing.best.metrics.get("landing_factor")
    assert (factor is not None) is pair.config.lands
    within = 0.0 if factor is None else 1e-5  # what it is found by are sums in another order
    torch.testing.assert_close(found, expected, rtol=within, atol=within)


def test_the_probe_that_counts_a_stop_and_the_last_have_all_rows(pair: Pair) -> None:
    best = pair.sparing.best
    for probe in [pair.sparing.probes[-1], *([best] if best else [])]:
        assert probe.n_rows == SIZES
        [whole] = [p for p in pair.whole.probes if p.step == probe.step]
        if "landing_factor" in probe.metrics:
            assert whole.landed is not None
            whole = whole.landed
        assert probe.metrics == pytest.approx(whole.metrics, abs=1e-5)


def test_the_forget_set_is_whole_at_every_probe(pair: Pair) -> None:
    by_step = {probe.step: probe.metrics for probe in pair.whole.probes}
    for probe in pair.sparing.probes:
        assert probe.n_rows["forget"] == SIZES["forget"]
        expected = by_step[probe.step]["forget_nll"]
        assert probe.metrics["forget_nll"] == pytest.approx(expected, abs=1e-5)


def test_what_was_committed_is_what_was_told_and_decides_the_same_again(pair: Pair) -> None:
    """A resumed driver reads the history: the same probes, and the guard stops at the same one."""
    told = committed_probes(pair.folder)
    assert told == [*pair.sparing.probes]
    reporter = GuardReporter(pair.config.selection)
    decisions = [reporter.report(probe) for probe in told]
    assert [d.stops for d in decisions[:-1]] == [False] * (len(told) - 1)
    assert decisions[-1] == pair.sparing.decision


def test_the_history_says_to_what_extent_the_trial_was_measured(pair: Pair) -> None:
    first = read_lines(pair.folder / "history.jsonl")[0]
    assert first["extent"] == {"adaptive": True, "skips": True}


def test_every_due_step_is_a_probe_or_left_out(pair: Pair) -> None:
    steps = [s for probe in pair.sparing.probes for s in (*probe.skipped, probe.step)]
    assert steps == [*range(1, steps[-1] + 1)]


def test_a_probe_is_left_out_while_target_and_limits_are_far(make_trial: TrialMaker) -> None:
    config = make_trial(ROWS | SPARING | {"optimizer.learning_rate": 1e-4})
    found = run_trial(config, GuardReporter(config.selection))
    assert [probe.step for probe in found.probes] == [1, 3, 4]
    assert [probe.skipped for probe in found.probes] == [(), (2,), ()]


def as_rank(rank: int, host: str, port: int, config: TrialConfig, folder: Path) -> None:
    """Run by each of two processes."""
    group = join(rank, 2, host, port, config.engine)
    found = run_trial(config, GuardReporter(config.selection), group=group)
    seen = [{"step": p.step, "n_rows": p.n_rows, "metrics": p.metrics} for p in found.probes]
    commit_json(folder / f"rank-{rank}.json", {"probes": seen})


def test_two_ranks_read_the_same_rows_and_decide_as_one(
    make_trial: TrialMaker, tmp_path: Path
) -> None:
    changes = ROWS | SPARING | KINDS["stopped-by-the-guard"]
    alone = run(make_trial(changes), tmp_path / "alone", Warm())
    spawned(as_rank, make_trial(changes | {"engine.ranks": 2}), tmp_path)
    one, other = (
        json.loads((tmp_path / f"rank-{rank}.json").read_text("utf-8"))["probes"] for rank in (0, 1)
    )
    assert one == other
    assert [(p["step"], p["n_rows"]) for p in one] == [(p.step, p.n_rows) for p in alone.probes]
    for probe, expected in zip(one, alone.probes, strict=True):
        assert probe["metrics"] == pytest.approx(expected.metrics, abs=1e-3)
