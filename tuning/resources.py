"""How many trials fit at once, and what a sweep will need: time, memory, disk."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.errors import UserError
from tuning.config import ResourcesSpec, SweepSpec

RANK_MEMORY_GIB = 3.0
"""Memory that ``max_concurrent: auto`` counts for a rank on this machine; the demo's ranks take 2.8."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is there to run on.

    Attributes:
        cpus: CPU cores over all nodes.
        gpus: GPUs over all nodes.
        memory_gib: Memory that is free; ``None`` where that is not known (a cluster).
    """

    cpus: float
    gpus: float
    memory_gib: float | None = None

    @classmethod
    def this_machine(cls) -> "Cluster":
        """Cores that this process may use, and GPUs that the driver lists."""
        return cls(
            cpus=len(os.sched_getaffinity(0)),
            gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))),
            memory_gib=psutil.virtual_memory().available / 2**30,
        )

    @classmethod
    def from_ray(cls, resources: Mapping[str, float]) -> "Cluster":
        """From Ray's cluster resources."""
        return cls(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))


def concurrent_trials(resources: ResourcesSpec, cluster: Cluster, *, may_grow: bool = False) -> int:
    """Trials at the same time: what is asked for, or as many as fit.

    Args:
        resources: What a trial occupies.
        cluster: What is there.
        may_grow: An autoscaling cluster may add nodes, so that nothing is refused.

    Raises:
        UserError: If not even one trial fits.
    """
    cpus = resources.ranks_per_trial * resources.cpus_per_rank
    gpus = resources.ranks_per_trial * resources.gpus_per_rank
    fitting = int(cluster.cpus // cpus)
    if gpus:
        fitting = min(fitting, int(cluster.gpus / gpus + 1e-9))
    if fitting < 1 and not may_grow:
        raise UserError(
            f"resources: a trial needs {cpus} CPUs and {gpus:g} GPUs "
            f"({resources.ranks_per_trial} ranks x {resources.cpus_per_rank} CPUs, {resources.gpus_per_rank:g} "
            f"GPUs), but only {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs are there; lower "
            "resources.ranks_per_trial, cpus_per_rank or gpus_per_rank"
        )
    if resources.max_concurrent == "auto":
        if cluster.memory_gib is not None:
            fitting = min(
                fitting, int(cluster.memory_gib / (resources.ranks_per_trial * RANK_MEMORY_GIB))
            )
        return max(1, fitting)
    return resources.max_concurrent if may_grow else min(resources.max_concurrent, max(1, fitting))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a sweep needs, roughly.

    Attributes:
        concurrent: Trials at the same time.
        parameters: Weights of the model; ``None`` if they cannot be told without loading it.
        adapter_parameters: Trained weights: of the largest adapter, or all.
        memory_gib: Memory of all trials at the same time, weights and optimiser and logits.
        disk_gib: Adapters of all trials and the shared artifacts.
        time_s: Seconds if no trial is stopped early, and if half of the steps are saved.
    """

    concurrent: int
    parameters: int | None
    adapter_parameters: int | None
    memory_gib: float | None
    disk_gib: float | None
    time_s: tuple[float, float] | None


def free_disk_gib(path: Path) -> float:
    """Free space where ``path`` is, or will be."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free / 2**30


def estimate(
    spec: SweepSpec,
    cluster: Cluster,
    *,
    shape: Mapping[str, int] | None,
    seconds_per_step: float | None,
) -> Estimate:
    """Estimate a sweep.

    Args:
        spec: The sweep.
        cluster: What it runs on.
        shape: ``parameters``, ``vocabulary``, ``linear_in_plus_out`` (summed over target layers) of the
            model, where it is known.
        seconds_per_step: Of one optimiser step with its probe, where it is known.
    """
    concurrent = concurrent_trials(spec.resources, cluster)
    memory = disk = None
    adapter = None
    if shape is not None:
        rank = largest_rank(spec)
        is_full = spec.adapter.get("kind") == "full"
        adapter = shape["parameters"] if is_full else rank * shape["linear_in_plus_out"]
        batch = spec.batch.get("micro_batch_size") or spec.batch.get("global_batch_size") or 8
        tokens = 2 * batch * max(s.get("max_tokens", 256) for s in _sources(spec))
        logits = (
            4 * tokens * shape["vocabulary"] * 4
        )  # float32, softmax and gradient beside the logits
        frozen = 2 if spec.engine.get("dtype") == "bf16" else 4
        ranks = spec.resources.ranks_per_trial
        process = 0.7 * 2**30  # interpreter with torch, deepspeed and transformers
        trial = ranks * (shape["parameters"] * frozen + logits + process) + 18 * adapter
        memory = (concurrent * trial + 1.5 * 2**30) / 2**30
        saved = (
            frozen if is_full else 8
        )  # bytes of a trained weight: the model's own, or twice the rank
        disk = (spec.budget.trials * saved * adapter + 12 * shape["parameters"]) / 2**30
    time_s = None
    if seconds_per_step is not None:
        whole = seconds_per_step * spec.budget.max_steps * spec.budget.trials / concurrent
        time_s = (0.5 * whole, whole)
    return Estimate(
        concurrent=concurrent,
        parameters=None if shape is None else shape["parameters"],
        adapter_parameters=adapter,
        memory_gib=memory,
        disk_gib=disk,
        time_s=time_s,
    )


def largest_rank(spec: SweepSpec) -> int:
    """The largest adapter rank that the sweep may try."""
    dimension = spec.space.get("adapter.rank")
    if dimension is None:
        return int(spec.adapter.get("rank", 8))
    if dimension.categorical is not None:
        return max(int(c) for c in dimension.categorical)
    assert dimension.int_range is not None  # rank is a whole number
    return dimension.int_range.high


def _sources(spec: SweepSpec) -> list[Mapping[str, int]]:
    return [v for v in spec.data.values() if isinstance(v, dict)]
