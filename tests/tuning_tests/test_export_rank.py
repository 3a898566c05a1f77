"""``export --rank`` writes the best approximation of a real adapter, and says what the approximation measures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Command
from safetensors.torch import load_file

from core.config import TrialConfig
from core.store.durable import commit_yaml
from core.training.ranks import Group
from core.training.warm import Warm
from core.worker import probes, report_measurement
from tuning.run import Run

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]


def difference(folder: Path, layer: str) -> torch.Tensor:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    name = f"base_model.model.{layer}"
    product: torch.Tensor = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    return product * float(config["lora_alpha"] / config["r"])


def test_a_lower_rank_is_the_best_of_that_rank_and_its_loss_is_stated(
    tune: Command, sample_run: Run, make_trial: TrialMaker
) -> None:
    training = {
        "method.adapter_init": "svd",
        "optimizer.learning_rate": 5e-4,
        "selection.select": "last",
    }
    limits = [{"metric": "retain_drop", "at_most": 0.0}]
    config = make_trial(training | {"selection.constraints": limits})
    source = sample_run.path / str(sample_run.trials[0].adapter)
    warm = Warm()
    unlimited = make_trial(training | {"selection.constraints": []})
    list(probes(unlimited, folder=source.parent, warm=warm))
    commit_yaml(source.parent / "trial.yaml", config.model_dump(mode="json"))

    done = tune("export", sample_run.path, "--out", "low", "--rank", 2)
    assert (done.status, done.out) == (0, "low\n"), done.err
    layer = "model.layers.1.mlp.up_proj"
    whole = difference(source, layer)
    u, sigma, v = torch.linalg.svd(whole, full_matrices=False)
    expected = (u[:, :2] * sigma[:2]) @ v[:2]
    torch.testing.assert_close(difference(Path("low"), layer), expected, rtol=0, atol=1e-5)

    measured = [
        report_measurement(config, folder, warm=warm, group=Group(rank=0, size=1)).metrics
        for folder in (source, Path("low"))
    ]
    closures = [m["forget_closure"] for m in measured]
    said = re.search(
        r"forget closure (\S+) to (\S+) on the reporting split, a loss of (\S+)", done.err
    )
    assert said is not None
    assert [float(x) for x in said.groups()] == pytest.approx(
        [*closures, closures[0] - closures[1]], abs=2e-3
    )
    card = Path("low/README.md").read_text(encoding="utf-8")
    assert said.group(0) in card
    assert "| metric, reporting split | rank 8 | rank 2, this adapter |" in card
    broken = not measured[1]["retain_drop"] <= 0.0
    assert ("beyond its limit of at most 0" in card) is broken
    assert ("warning: at rank 2 retain_drop" in done.err) is broken
