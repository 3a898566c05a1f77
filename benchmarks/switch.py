"""Time from one trial to the next in a warm process: what lies between the last probe and the next first step.

One rank makes trials of one step, each with another rank of the adapter and another seed, as the ranks of a sweep
do. Counted are the end of a trial (its engine and adapter are let go of, the base weights verified) and the
beginning of the next (adapter, engine, rows), not its step and not its probe.

    python benchmarks/switch.py search_spaces/demo.yaml --trials 6
"""

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step import trial_of

from core.config import TrialConfig
from core.measuring.selection import Probe
from core.training.place import own_engine
from core.training.ranks import Group, join_alone
from core.training.warm import Warm
from core.worker import turns

RANKS = (32, 16, 8, 4)


def between(
    config: TrialConfig, folder: Path, *, warm: Warm, group: Group
) -> tuple[float, float, float]:
    """Seconds to the first step of a trial, of its step and probe, and of its end."""
    began = time.perf_counter()
    trial = turns(
        config, at=partial(own_engine, group=group), folder=folder, group=group, warm=warm
    )
    turn = next(trial)
    first = time.perf_counter()
    while not isinstance(turn, Probe):
        turn.place.step(turn.micro_batches)
        turn = next(trial)
    last = time.perf_counter()
    trial.close()
    return first - began, last - first, time.perf_counter() - last


def measured(sweep: Path, *, trials: int) -> dict[str, Any]:
    """Medians, without the first trial, which loads the model."""
    config = trial_of(sweep)
    group, _meeting = join_alone(config.engine)
    warm = Warm()
    selection = config.selection.model_copy(update={"max_steps": 1})
    found = []
    with tempfile.TemporaryDirectory() as name:
        for i in range(trials + 1):
            adapter = config.adapter.model_copy(update={"rank": RANKS[i % len(RANKS)]})
            values = {"adapter": adapter, "selection": selection, "seed": i}
            trial = config.model_copy(update=values)
            found.append(between(trial, Path(name) / str(i), warm=warm, group=group))
            if i == 0:  # as the ranks of a sweep do
                gc.collect()
                gc.freeze()
    begin, work, end = (statistics.median(side) for side in zip(*found[1:], strict=True))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "sweep": str(sweep),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "trials": trials,
        "begin": round(begin, 3),
        "end": round(end, 3),
        "switch": round(begin + end, 3),
        "step_and_probe": round(work, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--output", type=Path, help="write PATH.json, too")
    options = parser.parse_args()
    found = measured(options.sweep, trials=options.trials)
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
