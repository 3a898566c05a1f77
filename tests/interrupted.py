"""Attempts at a trial that are killed between two probes, and what they leave."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from core.config import TrialConfig
from core.measuring.reporting import GuardReporter
from core.measuring.selection import Probe
from core.store.durable import read_lines
from core.training.ranks import Group, join
from core.training.resuming import EndedEarlyError, Interruption
from core.training.warm import Warm
from core.worker import probes

SIX_STEPS: Mapping[str, Any] = {
    "selection.max_steps": 6,
    "selection.probe_every": 2,
    "selection.checkpoint_every": 3,
    "selection.past_target": None,
    "selection.retain_guard": None,
    "selection.constraints": [],
}
"""No rule ends it early; a checkpoint lies between two probes."""
KINDS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"adapter.kind": "lora", "optimizer.learning_rate": 1e-3},
    "full": {"adapter.kind": "full", "optimizer.learning_rate": 1e-4},
}


def attempt(
    config: TrialConfig,
    folder: Path,
    *,
    killed_at: int | None = None,
    earlier: Sequence[Path] = (),
    group: Group | None = None,
    warm: Warm | None = None,
) -> list[Probe]:
    """The probes of an attempt under its guard; it is killed when it has told of the one at ``killed_at``, or after."""
    seen, guard = list[Probe](), GuardReporter(config.selection)
    trial = probes(
        config,
        folder=folder,
        group=group,
        warm=warm or Warm(),
        interruption=Interruption(earlier=earlier),
    )
    for probe in trial:
        seen.append(probe)
        if guard.report(probe).stops or (killed_at is not None and probe.step >= killed_at):
            break
    trial.close()
    return seen


def left_by(folder: Path) -> dict[str, Any]:
    """What an attempt leaves and what does not depend on when it ran: its probes, and the tensors of the best."""
    lines = read_lines(folder / "history.jsonl")
    timeless = [json.dumps(_without_times(line), sort_keys=True) for line in lines]
    saved = {
        f"{path.name}:{name}": tensor.tolist()
        for path in sorted((folder / "adapter").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    return {"lines": timeless, "saved": saved}


def _without_times(line: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in line.items() if k not in ("seconds", "resumed_at")}
    if line.get("landed"):
        kept["landed"] = _without_times(line["landed"])
    return kept


def run_on_rank(rank: int, host: str, port: int, trials: list[str], folder: str) -> None:
    """One of two ranks: each trial whole, then killed at step 4, then gone on with."""
    group = None
    for i, trial in enumerate(trials):
        config = TrialConfig.model_validate_json(trial)
        group = group or join(rank, 2, host, port, config.engine)
        whole, first, second = (
            Path(folder, f"{i}-{name}") for name in ("whole", "first", "second")
        )
        attempt(config, whole, group=group)
        attempt(config, first, killed_at=4, group=group)
        seen = attempt(config, second, earlier=[first], group=group)
        told = {
            "steps": [(probe.step, probe.is_carried) for probe in seen],
            "ended": ended_early(config, Path(folder, f"{i}-ended"), group) if i == 0 else None,
        }
        Path(folder, f"{i}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def ended_early(config: TrialConfig, folder: Path, group: Group) -> int | None:
    """The step after which a trial ends whose first rank alone is asked to, once it has told of its first probe."""
    is_asked = threading.Event()
    interruption = Interruption(is_asked=is_asked if group.is_first else None)
    trial = probes(config, folder=folder, group=group, warm=Warm(), interruption=interruption)
    next(trial)
    is_asked.set()
    try:
        next(trial)
    except EndedEarlyError as err:
        return err.step
    return None
