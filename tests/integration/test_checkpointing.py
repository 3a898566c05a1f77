"""Activation checkpointing changes how much is kept, and not what is computed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from core.config import TrialConfig
from core.training.warm import Warm
from core.worker import probes

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]


def series_of(config: TrialConfig) -> list[dict[str, float]]:
    return [dict(probe.metrics) for probe in probes(config, warm=Warm())]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_series_is_the_same(make_trial: TrialMaker, kind: str, stage: int) -> None:
    changes: Mapping[str, Any] = {
        "adapter.kind": kind,
        "engine.zero_stage": stage,
        "optimizer.learning_rate": 1e-3,
        "selection.past_target": None,
        "selection.constraints": [],
    }
    expected = series_of(make_trial(changes))
    found = series_of(make_trial({**changes, "engine.activation_checkpointing": True}))
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=0, abs=1e-6)
    assert abs(expected[-1]["forget_nll"] - expected[0]["forget_nll"]) > 0.01


@pytest.mark.parametrize(
    "method",
    [
        {"forget_loss": "rmu", "retain_loss": "activation"},
        {"forget_loss": "npo", "retain_loss": "kl"},
        {"forget_loss": "residual", "retain_loss": "residual"},
    ],
    ids=lambda m: "-".join(m.values()),
)
def test_losses_that_look_into_the_model_see_the_same(
    make_trial: TrialMaker, method: Mapping[str, str]
) -> None:
    changes = {f"method.{name}": value for name, value in method.items()}
    expected = series_of(make_trial(changes))
    found = series_of(make_trial({**changes, "engine.activation_checkpointing": True}))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=0, abs=1e-6)
