"""Everything that needs a GPU, in one script of a few minutes: is it right there, and how fast.

- *equal*: two steps in float32 on the CPU and on the GPU, and of trials in one pack and alone on the GPU: the
  largest difference of any metric of their probes;
- *step*, *switch*, *packing*: what the benchmarks of these names print;
- *sixteen*: sixteen trials of ten steps, nothing stopped, in one pack, from the end of preparation.

Without a GPU it runs all the same, which shows that it runs and no more.

    python benchmarks/gpu.py search_spaces/demo.yaml --output gpu.json
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import packing
import step
import switch
import torch

from core.config import TrialConfig
from core.measuring.selection import Probe
from core.model.loading import resolve_device
from core.training.ranks import Group, join_alone
from core.training.warm import Warm
from core.worker import SideBySide, probes

CLOSE = 1e-4


def varied(trial: TrialConfig, n_trials: int, **selection: Any) -> list[TrialConfig]:
    """Trials with other seeds, rates and ranks."""
    made = []
    for i in range(n_trials):
        optimizer = {"learning_rate": trial.optimizer.learning_rate * (1 + i / 4)}
        values = {
            "seed": i,
            "optimizer": trial.optimizer.model_copy(update=optimizer),
            "adapter": trial.adapter.model_copy(update={"rank": (4, 8, 16, 32)[i % 4]}),
            "selection": trial.selection.model_copy(update=selection),
        }
        made.append(trial.model_copy(update=values))
    return made


def with_engine(trial: TrialConfig, **engine: Any) -> TrialConfig:
    """The trial on another device or in another precision."""
    return trial.model_copy(update={"engine": trial.engine.model_copy(update=engine)})


def side_by_side(trials: Sequence[TrialConfig], *, warm: Warm, group: Group) -> list[list[Probe]]:
    """Probes of trials that share a pack."""
    found: list[list[Probe]] = [[] for _ in trials]
    pack = SideBySide(trials, n_slots=len(trials), group=group, warm=warm)
    for slot, trial in enumerate(trials):
        pack.begin(slot, trial)
    running = set(range(len(trials)))
    while running:
        for slot in sorted(running):
            while (probe := pack.go_on(slot)) is not None:
                found[slot].append(probe)
                if probe.stopped_by is not None:
                    pack.end(slot)
                    running.discard(slot)
                    break
        pack.step()
    pack.close()
    return found


def difference(some: Sequence[Probe], others: Sequence[Probe]) -> float:
    """Largest difference of any metric but perplexities."""
    return max(
        abs(a.metrics[name] - b.metrics[name])
        for a, b in zip(some, others, strict=True)
        for name in a.metrics
        if "perplexity" not in name and math.isfinite(a.metrics[name])
    )


def measured(sweep: Path) -> dict[str, Any]:
    """All of it."""
    trial = step.trial_of(sweep)
    group, _meeting = join_alone(trial.engine)
    plain = {"past_target": None, "landing": False, "no_effect": None, "constraints": ()}
    short = varied(trial, 3, max_steps=2, probe_every=2, **plain)
    exact = [with_engine(t, dtype="fp32") for t in short]
    warm = Warm()
    here = [list(probes(t, group=group, warm=warm)) for t in exact]
    packed = side_by_side(exact, warm=warm, group=group)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packed_against_alone": max(map(difference, packed, here)),
    }
    if resolve_device(trial.engine).type == "cuda":
        on_cpu = list(probes(with_engine(exact[0], device="cpu"), group=group, warm=Warm()))
        found["gpu_against_cpu"] = difference(here[0], on_cpu)
    warm = Warm()
    many = varied(trial, 16, max_steps=10, probe_every=5, **plain)
    side_by_side(
        [t.model_copy(update={"selection": short[0].selection}) for t in many[:2]],
        warm=warm,
        group=group,
    )
    began = time.perf_counter()
    side_by_side(many, warm=warm, group=group)
    found["sixteen_trials_of_ten_steps_s"] = round(time.perf_counter() - began, 1)
    found["step"] = step.measured(sweep, repetitions=3, threads=1)["results"]
    found["switch"] = switch.measured(sweep, trials=4)
    found["packing"] = packing.measured(trial, (1, 4, 8, 16), rounds=1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = measured(options.sweep)
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    wrong = [k for k in ("packed_against_alone", "gpu_against_cpu") if found.get(k, 0.0) > CLOSE]
    if wrong:
        raise SystemExit(f"not equal: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
