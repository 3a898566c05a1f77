"""A trial that is interrupted and goes on from a checkpoint ends as if it had not been: to the last bit on a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.config import TrialConfig
from core.measuring.selection import Probe
from core.store.checkpoints import folder_of, found
from core.store.durable import read_lines
from core.training.ranks import Group
from core.training.warm import Warm
from core.worker import Interruption, probes

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]

LONG: Mapping[str, Any] = {
    "selection.max_steps": 6,
    "selection.probe_every": 2,
    "selection.checkpoint_every": 3,
    "selection.past_target": None,
    "selection.retain_guard": None,
    "selection.constraints": [],
}


def run(
    config: TrialConfig,
    folder: Path,
    *,
    up_to: int | None = None,
    earlier: tuple[Path, ...] = (),
    group: Group | None = None,
) -> list[Probe]:
    """The probes of an attempt, which is killed when it asks for one after step ``up_to``."""
    attempt = probes(
        config, folder=folder, group=group, warm=Warm(), interruption=Interruption(earlier=earlier)
    )
    seen: list[Probe] = []
    for probe in attempt:
        seen.append(probe)
        if up_to is not None and probe.step >= up_to:
            break
    attempt.close()
    return seen


def left(folder: Path) -> dict[str, Any]:
    """What an attempt leaves that does not depend on when: lines of the history, and tensors of the adapter."""
    dropped = ("seconds", "resumed_at")
    lines = [{k: v for k, v in line.items() if k not in dropped} for line in read_lines(folder / "history.jsonl")]
    saved = {
        f"{path.name}:{name}": tensor.tolist()
        for path in sorted((folder / "adapter").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    return {"lines": lines, "saved": saved}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_ends_as_if_it_had_not_been_interrupted(
    make_trial: TrialMaker, tmp_path: Path, stage: int, kind: str, dtype: str
) -> None:
    config = make_trial({**LONG, "engine.zero_stage": stage, "engine.dtype": dtype, "adapter.kind": kind, "optimizer.learning_rate": 1e-3 if kind == "lora" else 1e-4})
    run(config, tmp_path / "whole")
    first, second = tmp_path / "first", tmp_path / "second"
    run(config, first, up_to=4)
    assert found([first]) == [folder_of(first, 3)]
    seen = run(config, second, earlier=(first,))
    assert [(p.step, p.is_carried) for p in seen] == [(2, True), (4, False), (6, False)]
    assert left(second) == left(tmp_path / "whole")
    assert left(second)["saved"]
