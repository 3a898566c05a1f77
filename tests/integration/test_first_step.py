"""After its first step a trial knows whether every adapted layer is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from core.config import TrialConfig
from core.errors import ModelError
from core.training.warm import Warm
from core.worker import probes

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]


def with_unused_layer(config: TrialConfig, name: str) -> Warm:
    """A process that has the model in memory, with a linear layer that no forward pass reads."""
    warm = Warm()
    network: Any = warm.model(config).network
    layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
    setattr(network.model.layers[1].mlp, name, layer)
    return warm


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("init", ["lora", "svd"])
def test_a_layer_without_a_gradient_stops_the_trial_and_is_named(
    make_trial: TrialMaker, tiny_model: Path, tmp_path: Path, stage: int, init: str
) -> None:
    """What follows gate and up projection of a block multiplies by zero: no gradient reaches them."""
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    network.model.layers[1].mlp.down_proj.weight.data.zero_()
    network.save_pretrained(tmp_path / "deaf")
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "deaf")
    changes = {"model.source": str(tmp_path / "deaf"), "engine.zero_stage": stage}
    config = make_trial(changes | {"method.adapter_init": init})
    expected = (
        r"adapter\.targets: no gradient reached model\.layers\.1\.mlp\.gate_proj, "
        r"model\.layers\.1\.mlp\.up_proj"
    )
    with pytest.raises(ModelError, match=expected):
        next(probes(config, warm=Warm()))


def test_an_expert_that_no_token_chose_is_no_mistake(make_trial: TrialMaker) -> None:
    config = make_trial({"selection.max_steps": 1})
    warm = with_unused_layer(config, "expert")
    assert [probe.step for probe in probes(config, warm=warm)] == [1]


def test_blocks_after_the_steered_one_need_no_gradient(make_trial: TrialMaker) -> None:
    changes = {"method.forget_loss": "rmu", "method.retain_loss": "activation"}
    config = make_trial({**changes, "selection.max_steps": 1})
    assert [probe.step for probe in probes(config, warm=Warm())] == [1]


def test_a_forget_weight_of_zero_without_a_retain_loss_trains_nothing(
    make_trial: TrialMaker,
) -> None:
    config = make_trial({"method.forget_weight": 0.0, "method.retain_loss": "none"})
    with pytest.raises(ModelError, match=r"no gradient reached model\.layers\.0.* and 11 more"):
        next(probes(config, warm=Warm()))
