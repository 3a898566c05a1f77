"""Time and memory of an optimiser step, by how many trials share one pass over one frozen model.

Each size is measured as ``engine.packing: auto`` measures it: the trials of a pack differ in their seeds alone,
and a size of 1 is a trial with an engine of its own. Sizes are measured in turn, ``--rounds`` times, and the
median counts; CPU time is printed beside the clock, for it does not depend on what else runs on the machine.

    python benchmarks/packing.py search_spaces/demo.yaml --sizes 1 2 4 8 16
    python benchmarks/packing.py sweep.yaml --set engine.device=cuda --json packing.json

The trial is the first corner of the sweep file's space.
"""

import argparse
import json
import platform
import resource
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from core.config import TrialConfig
from core.model.loading import resolve_device
from core.training.ranks import join_alone
from core.training.speed import StepTime, time_steps
from core.training.warm import Warm
from tuning.files import load_sweep
from tuning.space import bind, corner_proposals

Row = Mapping[str, float]


def first_trial(path: Path, changes: Sequence[str]) -> TrialConfig:
    """The trial at the first corner of a sweep file's space."""
    overrides = {
        key: yaml.safe_load(value) for key, _, value in (c.partition("=") for c in changes)
    }
    spec = load_sweep(path, overrides=overrides)
    return bind(spec, next(iter(corner_proposals(spec))), where=str(path))


def measured(trial: TrialConfig, sizes: Sequence[int], *, rounds: int) -> list[Row]:
    """A row for each size, in milliseconds; without those that did not fit."""
    group, _meeting = join_alone(trial.engine)
    warm = Warm()
    times: dict[int, list[StepTime]] = defaultdict(list)
    gib: dict[int, float] = {}
    is_cuda = resolve_device(trial.engine).type == "cuda"
    for _ in range(rounds):
        for size in sizes:
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                times[size].append(time_steps(trial, size, warm=warm, group=group))
            except torch.OutOfMemoryError:
                continue
            gib[size] = peak_gib(is_cuda=is_cuda)
    clock = {size: median(t.seconds for t in found) for size, found in times.items()}
    cpu = {size: median(t.cpu_seconds for t in found) for size, found in times.items()}
    return [
        {
            "trials": size,
            "ms_a_step": 1e3 * clock[size],
            "ms_a_trial": 1e3 * clock[size] / size,
            "speed_up": clock[1] * size / clock[size],
            "cpu_ms_a_trial": 1e3 * cpu[size] / size,
            "cpu_speed_up": cpu[1] * size / cpu[size],
            "peak_gib": gib[size],
        }
        for size in clock
    ]


def peak_gib(*, is_cuda: bool) -> float:
    """Of the GPU since it was last asked, or of the process so far."""
    if is_cuda:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """What it ran on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()}, torch {torch.__version__}"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| trials | step, ms | of a trial, ms | speed-up | CPU time of a trial, ms | speed-up | peak, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['trials']} | {r['ms_a_step']:.0f} | {r['ms_a_trial']:.0f} | {r['speed_up']:.2f} | "
        f"{r['cpu_ms_a_trial']:.0f} | {r['cpu_speed_up']:.2f} | {r['peak_gib']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweep", type=Path, help="sweep file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures are written, too")
    arguments = parser.parse_args()
    trial = first_trial(arguments.sweep, arguments.set)
    sizes = sorted({1, *arguments.sizes})
    rows = measured(trial, sizes, rounds=arguments.rounds)
    about: dict[str, Any] = {
        "machine": machine(),
        "threads": trial.engine.threads,
        "model": trial.model.source,
        "trial": trial.model_dump(mode="json", include={"method", "adapter", "batch", "engine"}),
    }
    print(f"{about['machine']}, {about['threads']} threads, {about['model']}\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(about | {"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
