"""A trial with dropout: repeatable, another one than without, and saved whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import TrialConfig
from core.training.adapter import load_adapter
from core.training.ranks import Group
from core.training.warm import Warm
from core.worker import probes, report_measurement

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]


def series(config: TrialConfig, folder: Path | None = None) -> list[dict[str, float]]:
    return [dict(probe.metrics) for probe in probes(config, folder=folder, warm=Warm())]


def test_a_trial_that_drops_inputs_is_repeated_to_the_bit_and_differs_from_one_that_does_not(
    make_trial: TrialMaker, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"adapter.dropout": 0.2, "selection.past_target": None}
    found = series(make_trial(changes), tmp_path)
    assert series(make_trial({**changes, "engine.activation_checkpointing": True})) == [
        pytest.approx(metrics, rel=0, abs=1e-6) for metrics in found
    ]
    without = series(make_trial({**changes, "adapter.dropout": 0.0}))
    assert abs(found[-1]["forget_nll"] - without[-1]["forget_nll"]) > 1e-4
    assert abs(found[0]["forget_nll"] - without[0]["forget_nll"]) < 1.0
    # what was saved drops nothing: stock PEFT measures what the probe did
    config, warm = make_trial(changes), Warm()
    measured = report_measurement(
        config, tmp_path / "adapter", warm=warm, group=Group(rank=0, size=1)
    )
    values = [metrics["forget_nll"] for metrics in found]
    assert min(abs(measured.metrics["forget_nll"] - value) for value in values) < 1e-3
    assert load_adapter(warm.model(config).network, tmp_path / "adapter") is not None
