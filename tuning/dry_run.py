"""``sweep --dry-run``: the resolved space, sample configurations, and what the sweep will need."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from core.config import DataConfig, ModelConfig, SourceConfig
from core.data.benchmarks import NAMED
from core.data.counts import Counts
from core.errors import ModelError
from core.model.source import locate
from tuning.cluster.prices import ForeseenCost, foreseen_cost
from tuning.cluster.sites import read_config
from tuning.config import SweepSpec
from tuning.data_words import count_lines, data_warnings
from tuning.foresight import foresee
from tuning.proposals import next_proposal, starting_points
from tuning.rendering import RenderedRow, rendered_lines, rendered_rows
from tuning.resources import (
    Cluster,
    Estimate,
    asked_slots,
    estimate,
    free_disk_gib,
    is_model_here,
    largest_of,
    largest_rank,
    rank_needs,
    with_gpus,
)
from tuning.space import describe
from tuning.terminal import Shown, shown, terminal
from tuning.wording import duration, parameters

SAMPLES = 5
_FLOPS_PER_CORE = 4e10
"""Float operations per second that a CPU core reaches in training, for a guess of the time."""
_FLOPS_PER_GPU = 1e14


def show_dry_run(
    spec: SweepSpec, run_dir: Path, *, as_json: bool, cluster_file: Path | None = None
) -> None:
    """Print what the sweep would do; nothing is started, and nothing written but a baseline to the cache.

    Args:
        spec: The sweep.
        run_dir: Its run folder.
        as_json: For scripts.
        cluster_file: Of a cluster that the sweep will run on, with its prices; this machine if absent.

    Raises:
        DataError: If the data is on this machine and cannot be read or split.
    """
    config = None if cluster_file is None else read_config(cluster_file)
    here = Cluster.this_machine() if config is None else at_its_largest(config, str(cluster_file))
    samples = sample_proposals(spec)
    shape, memory = model_shape(spec), rank_needs(spec, slots=asked_slots(spec))
    sweep = with_gpus(spec, here, memory)
    seconds = None if shape is None else seconds_per_step(sweep, shape["parameters"])
    needs = estimate(sweep, here, shape=shape, needs=memory, seconds_per_step=seconds)
    cost = None if config is None else _cost(config, sweep, needs)
    data = read_data(spec, shape)
    counts = None if data is None else data.counts
    limits = foresee(
        spec, n_parameters=None if shape is None else shape["parameters"], counts=counts
    )
    if as_json:
        record = {
            "run": str(run_dir),
            "space": {n: describe(d) for n, d in spec.space.items()},
            "samples": samples,
            "estimate": vars(needs),
            "cost": None if cost is None else vars(cost),
            "limits": limits.plain,
            "spec": spec.plain(),
            "data_counts": None if counts is None else {k: vars(v) for k, v in counts.items()},
            "rows": None if data is None else {k: vars(v) for k, v in data.rows.items()},
            "wording": None if data is None else data.wording,
        }
        print(json.dumps(record, indent=1))  # noqa: T201
        return
    console = terminal()
    head = (
        f"sweep {spec.name} -> {run_dir}: {spec.budget.trials} trials of at most "
        f"{spec.budget.max_steps} steps, {needs.concurrent} at a time "
        f"({needs.because}), sampler {spec.sampler.name}"
    )
    console.print(shown(head))
    table = Table(box=None, pad_edge=False)
    for name in ("searched field", "range", "why"):
        table.add_column(name)
    for name, dimension in spec.space.items():
        table.add_row(name, describe(dimension), dimension.why)
    console.print(Shown(table))
    console.print("fixed:")
    console.print(shown(yaml.safe_dump(spec.fixed_values(), sort_keys=False).rstrip()))
    console.print(shown(f"{len(samples)} sample configurations (start_from first):"))
    for sample in samples:
        console.print(shown("  " + parameters(sample)))
    for line in (
        *limits.lines,
        *_data_lines(data),
        *_needs_lines(spec, run_dir, needs),
        *([] if config is None else [_cost_line(cost)]),
    ):
        console.print(shown(line), soft_wrap=True)


def at_its_largest(config: Mapping[str, Any], called: str) -> Cluster:
    """The cluster of a file for Ray's launcher, with as many workers as it may have."""
    return Cluster.from_ray(largest_of(config), called=f"the cluster of {called} at its largest")


def _cost(config: Mapping[str, Any], spec: SweepSpec, needs: Estimate) -> ForeseenCost | None:
    if needs.time_s is None:
        return None
    slots = asked_slots(spec)
    workers = math.ceil(needs.concurrent / slots)
    return foreseen_cost(config, spec.resources, workers=workers, time_s=needs.time_s)


def _cost_line(cost: ForeseenCost | None) -> str:
    if cost is None:
        return "cost: not known without the model on this machine and metadata.price_per_hour of the cluster's file"
    return (
        f"cost: very roughly ${cost.low:.2f} ({cost.machines} of the cheapest workers that a rank fits on) to "
        f"${cost.high:.2f} (all machines that the file allows)"
    )


def sample_proposals(spec: SweepSpec, *, count: int = SAMPLES) -> list[dict[str, Any]]:
    """The first proposals of the sweep."""
    trials = starting_points(spec)
    found = []
    for _ in range(min(count, spec.budget.trials)):
        proposed = next_proposal(spec, trials)
        trials[proposed.number : proposed.number + 1] = [proposed.born()]
        found.append(proposed.params)
    return found


def model_shape(spec: SweepSpec) -> dict[str, int] | None:
    """Size of the sweep's model, from its configuration alone; ``None`` if that is not on this machine."""
    from core.model.loading import model_shape as shape_of

    if not is_model_here(spec):
        return None  # a dry run downloads nothing
    try:
        return shape_of(ModelConfig.model_validate(spec.model))
    except ModelError:
        return None


@dataclass(frozen=True, kw_only=True)
class ReadData:
    """What a dry run says of the rows.

    Attributes:
        counts: What was read for each part, and what of it is left out.
        rows: A row of each role as the model reads it.
        wording: What a person should know of how prompts are written, if anything.
    """

    counts: dict[str, Counts]
    rows: dict[str, RenderedRow]
    wording: str | None

    @property
    def lines(self) -> list[str]:
        """For a person."""
        warned = [*data_warnings(self.counts), *filter(None, [self.wording])]
        return [
            *(f"data, {line}" for line in count_lines(self.counts)),
            *rendered_lines(self.rows),
            *(f"warning: {text}" for text in warned),
        ]


def read_data(spec: SweepSpec, shape: dict[str, int] | None) -> ReadData | None:
    """Read, tokenise and split the data as the sweep will; ``None`` if tokenizer or data are not on this machine.

    Raises:
        DataError: If the data is there and cannot be read or split.
    """
    from core.data.splits import split_data
    from core.data.taught import wording_notice
    from core.model.loading import local_tokenizer

    data, model = DataConfig.model_validate(spec.data), ModelConfig.model_validate(spec.model)
    if not is_model_here(spec) or any(
        source.mirror is None and _is_of_hub(source) for source in data.sources.values()
    ):
        return None
    try:
        tokenizer = local_tokenizer(model)
    except ModelError:
        return None
    known = {} if shape is None else shape
    vocabulary, positions = known.get("vocabulary"), known.get("positions")
    splits = split_data(data, tokenizer, vocabulary=vocabulary, positions=positions)
    wording = wording_notice(
        data,
        tokenizer,
        (row for part in splits.parts.values() for row in part),
        source=model.source,
        location=locate(model)[0],
    )
    return ReadData(counts=splits.counts, rows=rendered_rows(splits, tokenizer), wording=wording)


def _is_of_hub(source: SourceConfig) -> bool:
    kind = source.source.partition(":")[0]
    return kind == "hub" or (kind in NAMED and kind != "authors")


def seconds_per_step(spec: SweepSpec, n_parameters: int) -> float:
    """A guess: forget and retain rows forward and backward, and the probe's rows forward."""
    plan_rows = 2 * int(spec.batch.get("global_batch_size") or 8)
    of_parts = spec.data.get(
        "probe_rows", 32
    )  # the forget set is taken to be as large as their mean
    probe_rows = 1.5 * (sum(of_parts.values()) if isinstance(of_parts, dict) else 2 * of_parts)
    tokens = 0.7 * max(
        int(s.get("max_tokens", 256)) for s in spec.data.values() if isinstance(s, dict)
    )
    flops = 2 * n_parameters * tokens * (2 * plan_rows + probe_rows / spec.budget.probe_every)
    ranks = spec.resources.ranks_per_trial
    if spec.resources.n_gpus:
        return flops / (_FLOPS_PER_GPU * spec.resources.n_gpus * ranks)
    return flops / (_FLOPS_PER_CORE * spec.resources.cpus_per_rank * ranks)


def _data_lines(data: ReadData | None) -> list[str]:
    if data is None:
        return ["data: not counted before tokenizer and data are on this machine"]
    return data.lines


def _needs_lines(spec: SweepSpec, run_dir: Path, needs: Estimate) -> list[str]:
    missing = [] if needs.lacking is None else [f"warning: not on this machine: {needs.lacking}"]
    return [*missing, *_known_needs_lines(spec, run_dir, needs)]


def _known_needs_lines(spec: SweepSpec, run_dir: Path, needs: Estimate) -> list[str]:
    if needs.parameters is None or needs.disk_gib is None or needs.time_s is None:
        return ["memory, disk and time: not known before the model is on this machine"]
    low, high = needs.time_s
    is_full = spec.adapter.get("kind") == "full"
    trained = "all trained" if is_full else f"adapter of rank {largest_rank(spec)}"
    return [
        f"model: {needs.parameters / 1e6:.0f} M weights; {trained}: "
        f"{(needs.adapter_parameters or 0) / 1e6:.1f} M",
        *_memory_lines(needs),
        f"disk: about {needs.disk_gib:.1f} GiB (free: {free_disk_gib(run_dir):.0f} GiB)"
        + _checkpoints(needs),
        f"time: very roughly {duration(low)} to {duration(high)} after preparation",
    ]


def _checkpoints(needs: Estimate) -> str:
    if not needs.checkpoints_gib:
        return ""
    return f", {needs.checkpoints_gib:.1f} GiB of it for checkpoints of running trials"


def _memory_lines(needs: Estimate) -> list[str]:
    if needs.rank_gib is None or needs.rank_gpu_gib is None:
        return ["memory: not known before model and data can be read on this machine"]
    rows = "its longest rows" if needs.rows_are_known else "rows of max_tokens"
    place = f"computes on {needs.gpus_per_rank:g} GPUs" if needs.gpus_per_rank else "on the CPU"
    return [
        f"a rank: about {needs.rank_gib:.2f} GiB of the machine's memory ({place}); on a GPU it needs about "
        f"{needs.rank_gpu_gib:.2f} GiB there; for {rows}",
        f"memory: about {needs.memory_gib:.1f} GiB for {needs.concurrent} trials at a time and the driver",
    ]
