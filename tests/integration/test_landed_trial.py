"""A tiny model that is trained past its target, and what is left of the trial once it is scaled back onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import TrialMaker

from core.config import TrialConfig
from core.measuring.reporting import GuardReporter
from core.measuring.selection import CLOSURE_AT_TARGET, Probe
from core.store.durable import read_lines
from core.training.full_parameters import is_model_folder
from core.training.ranks import join_alone
from core.training.warm import Warm
from core.worker import report_measurement, run_trial
from tuning.committed import committed_probes
from tuning.objective import conclude

pytestmark = pytest.mark.integration

OVERSHOOTING: Mapping[str, Any] = {
    "method.forget_loss": "ga",
    "method.retain_loss": "none",
    "optimizer.learning_rate": 3e-2,
    "selection.max_steps": 12,
    "selection.constraints": [],
    "selection.landing": "auto",
    "selection.past_target": {"patience": 1},
    "selection.retain_guard": {"limit": 99.0, "hard_limit": 999.0},
}
AT_ONCE: Mapping[str, Any] = {"selection.max_steps": 3, "selection.probe_every": 3}
"""The first probe is the last, and far past the target."""
PROBE_ROWS: Mapping[str, int] = {"retain": 20, "general": 10}
SPARING: Mapping[str, Any] = {
    "selection.rows_per_probe": "adaptive",
    "selection.skip_probes": True,
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "fila": {"method.adapter_init": "fila", "optimizer.learning_rate": 3e-3},
    "adapter": AT_ONCE,
    "minimised": {**AT_ONCE, "selection.metric": "drop_at_target"},
    "full": {**AT_ONCE, "adapter.kind": "full", "optimizer.learning_rate": 3e-3},
}


@dataclass(frozen=True, kw_only=True)
class Landed:
    """A trial that overshot, and its folder."""

    config: TrialConfig
    folder: Path
    probes: tuple[Probe, ...]

    @property
    def landed(self) -> Probe:
        found = self.probes[-1].landed
        assert found is not None
        return found

    @property
    def stopped_by(self) -> str:
        return "budget" if len(self.probes) == 1 else "past_target"


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm()


@pytest.fixture(scope="module", params=KINDS)
def trial(
    request: pytest.FixtureRequest,
    make_trial: TrialMaker,
    warm: Warm,
    tmp_path_factory: pytest.TempPathFactory,
) -> Landed:
    config = make_trial({**OVERSHOOTING, **KINDS[request.param]})
    folder = tmp_path_factory.mktemp(request.param)
    result = run_trial(config, GuardReporter(config.selection), folder=folder, warm=warm)
    return Landed(config=config, folder=folder, probes=result.probes)


def test_it_ends_past_its_target_and_lands_on_it(trial: Landed) -> None:
    last, landed = trial.probes[-1], trial.landed
    assert last.stopped_by == trial.stopped_by
    assert all(p.landed is None for p in trial.probes[:-1])
    assert 0.0 < landed.metrics["landing_factor"] < 1.0
    assert landed.metrics["forget_closure"] >= CLOSURE_AT_TARGET
    assert landed.metrics["forget_closure"] > max(p.metrics["forget_closure"] for p in trial.probes)
    assert landed.step == last.step


def test_what_is_committed_says_what_was_handed_out(trial: Landed) -> None:
    line = read_lines(trial.folder / "history.jsonl")[-1]
    assert line["is_best"]
    assert line["landed"]["metrics"] == trial.landed.metrics
    assert set(line["landed"]["rows"]) == {"forget", "retain", "general"}
    assert committed_probes(trial.folder) == list(trial.probes)


def test_its_outcome_is_that_of_the_landing(trial: Landed) -> None:
    outcome = conclude(trial.probes, trial.config.selection, None)
    metric = trial.config.selection.metric
    assert (outcome.state, outcome.stopped_by) == ("COMPLETE", trial.stopped_by)
    assert outcome.metrics == trial.landed.metrics
    assert outcome.value == trial.landed.metrics[metric]
    assert outcome.value_interval == trial.landed.intervals[metric]
    assert "it lies on its target" in outcome.reason
    if metric == "drop_at_target":
        drops = [trial.landed.metrics[m] for m in trial.config.selection.limited_metrics]
        assert outcome.value == min(1.0, max(drops))
        low, high = trial.landed.intervals[metric]
        assert low <= max(drops) <= high
        assert all(p.metrics[metric] >= 1.0 for p in trial.probes)


def test_the_saved_weights_are_the_landed_ones(trial: Landed, warm: Warm) -> None:
    group, _meeting = join_alone(trial.config.engine)
    saved = trial.folder / "adapter"
    found = report_measurement(trial.config, saved, warm=warm, group=group).metrics
    for name in ("forget_nll", "forget_closure"):
        assert found[name] == pytest.approx(trial.landed.metrics[name], abs=1e-3)


def test_stock_peft_gives_the_recorded_numbers(
    trial: Landed, tiny_data: Mapping[str, Path], warm: Warm
) -> None:
    if is_model_folder(trial.folder / "adapter"):
        pytest.skip("a whole model is no adapter")
    original = transformers.AutoModelForCausalLM.from_pretrained(
        trial.config.model.source, dtype=torch.float32
    )
    stock = peft.PeftModel.from_pretrained(original, str(trial.folder / "adapter")).eval()
    total = count = 0.0
    for row in warm.data(trial.config)["forget"]:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            loss = stock(input_ids=ids, labels=ids).loss
        total += float(loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert total / count == pytest.approx(trial.landed.metrics["forget_nll"], abs=1e-3)


@pytest.mark.parametrize("is_sparing", [False, True])
def test_a_guard_stop_past_the_target_lands_before_the_probe_is_handed_out(
    make_trial: TrialMaker, warm: Warm, tmp_path: Path, is_sparing: bool
) -> None:
    """The last probe breaks the guard; the same weights at the target keep it, with room."""
    guard = {"metrics": ["general_drop"], "limit": 3.0, "hard_limit": 3.5}
    often = {"selection.probe_every": 3, "selection.retain_guard": guard}
    extent = SPARING if is_sparing else {}
    rows = {"data.probe_rows": PROBE_ROWS}
    config = make_trial({**OVERSHOOTING, **often, **rows, **extent})
    result = run_trial(config, GuardReporter(config.selection), folder=tmp_path, warm=warm)
    last, verdict = result.probes[-1], result.decision.verdict
    assert verdict is not None and verdict.stopped_by == "retain_guard"
    assert last.stopped_by is None
    assert last.landed is not None and last.landed.metrics["general_drop"] < 3.0
    assert result.best is last.landed
    sizes = {"forget": 8, **PROBE_ROWS}
    assert last.landed.n_rows == last.n_rows == sizes
    assert committed_probes(tmp_path) == list(result.probes)


def test_a_trial_that_breaks_the_guard_first_does_not_land(
    make_trial: TrialMaker, warm: Warm
) -> None:
    guard = {"limit": 1e-3, "hard_limit": 99.0, "patience": 3, "grace_steps": 0}
    config = make_trial({**OVERSHOOTING, "selection.retain_guard": guard})
    result = run_trial(config, GuardReporter(config.selection), warm=warm)
    nll, closure = "forget_nll", "forget_closure"
    assert result.decision.verdict is not None or result.probes[-1].stopped_by is not None
    assert result.probes[-1].metrics[nll] > result.probes[0].metrics[nll]
    assert result.probes[0].metrics[closure] > 0.0
    assert all(p.landed is None for p in result.probes)


def test_a_trial_without_effect_ends_at_its_share(make_trial: TrialMaker, warm: Warm) -> None:
    idle = {
        "optimizer.learning_rate": 1e-7,
        "selection.max_steps": 8,
        "selection.no_effect": {"after": 0.5},
    }
    for warmup, step in ((0, 4), (4, 6)):
        config = make_trial({**idle, "optimizer.warmup_steps": warmup})
        result = run_trial(config, GuardReporter(config.selection), warm=warm)
        assert [p.step for p in result.probes] == list(range(1, step + 1))
        outcome = conclude(result.probes, config.selection, None)
        assert (outcome.state, outcome.stopped_by) == ("COMPLETE", "no_effect")
        assert "stays within its noise" in outcome.reason


def test_a_warm_up_trial_that_forgets_in_the_end_is_not_cut(
    make_trial: TrialMaker, warm: Warm
) -> None:
    """Half of its steps pass without effect: they are its warm-up."""
    rising = {
        "optimizer.learning_rate": 5e-3,
        "optimizer.warmup_steps": 7,
        "optimizer.schedule": "linear",
        "selection.select": "last",
        "selection.past_target": None,
        "selection.max_steps": 10,
        "selection.no_effect": {"after": 0.5, "at_most": 0.1},
    }
    config = make_trial(rising)
    result = run_trial(config, GuardReporter(config.selection), warm=warm)
    assert result.probes[-1].step == 10
    assert result.probes[4].intervals["forget_closure"][0] <= 0.1
    assert result.probes[-1].metrics["forget_closure"] > 0.1
