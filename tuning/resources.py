"""How many trials fit at once, and what a sweep will need: time, memory, disk."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from core.config import TrialConfig
from core.errors import FileError, UserError, in_a_line
from core.model.machine import (
    free_cpus,
    free_memory_gib,
    installed_gpus,
    shown_in_words,
    visible_gpus,
)
from core.store.checkpoints import KEPT
from core.store.place import below_home
from core.store.texts import read_text
from tuning import strict_yaml
from tuning.config import ResourcesSpec, SweepSpec
from tuning.fitting import Room, trials_on
from tuning.space import bind, corner_proposals
from tuning.surroundings import existing_part

LEFT_FILE = below_home("ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves the cluster's file on the head."""
RANK_MEMORY_GIB = 3.0
"""Memory that is counted for a rank whose model or data are not on this machine."""
DRIVER_GIB = 1.5
"""Memory of the driver and of Ray itself."""
CHECKPOINT_BYTES = 12
"""Of a trained weight in a checkpoint: a master and two moments, float32; the best adapter so far lies beside."""
GPU_SPARE = 1.1
"""What a share of a GPU is larger than the estimate."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What there is to run on.

    Attributes:
        cpus: CPU cores over all nodes.
        gpus: GPUs over all nodes.
        memory_gib: Memory that is free; ``None`` where that is not known (a cluster).
        gpu_memory_gib: Memory of the smallest GPU; ``None`` where that is not known.
        called: What it is called in messages.
        gpus_because: What shows fewer GPUs than the machine has; empty if nothing does.
        rooms: What each node has; empty where that is not known.
    """

    cpus: float
    gpus: float
    memory_gib: float | None = None
    gpu_memory_gib: float | None = None
    called: str = "this machine"
    gpus_because: str = ""
    rooms: tuple[Room, ...] = ()

    @classmethod
    def this_machine(cls, root: Path = Path("/")) -> "Cluster":
        """Cores and memory within this container's limits, and the GPUs that the environment shows."""
        installed = installed_gpus(root)
        gpus = visible_gpus(found=installed)
        memories = [gpu.memory_gib for gpu in gpus]
        known = [m for m in memories if m is not None]
        return cls(
            cpus=max(1.0, free_cpus(root)),
            gpus=len(gpus),
            memory_gib=free_memory_gib(root),
            gpu_memory_gib=min(known) if known and len(known) == len(memories) else None,
            gpus_because=shown_in_words(installed),
            rooms=(Room(cpus=max(1.0, free_cpus(root)), gpus=len(gpus)),),
        )

    @classmethod
    def from_ray(
        cls,
        resources: Mapping[str, float],
        *,
        called: str = "the cluster as it is",
        rooms: Sequence[Room] = (),
    ) -> "Cluster":
        """From Ray's cluster resources."""
        return cls(
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            called=called,
            rooms=tuple(rooms),
        )

    def trials(self, resources: ResourcesSpec) -> int:
        """Trials that find a place on its nodes at the same time, where these are known."""
        return trials_on(
            self.rooms,
            cpus=resources.cpus_per_rank,
            gpus=resources.n_gpus,
            ranks=resources.ranks_per_trial,
            placement=resources.placement,
        )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a rank of the largest trial needs, GiB.

    Attributes:
        on_cpu: Of the machine's memory, if it computes on the CPU.
        on_gpu: Of a GPU's memory, if it computes there.
        beside_gpu: Of the machine's memory, if it computes on a GPU.
        is_bound: The rows are not known, and each is taken to be as long as it may be.
    """

    on_cpu: float
    on_gpu: float
    beside_gpu: float
    is_bound: bool

    def of_machine(self, resources: ResourcesSpec) -> float:
        """Memory of the machine for one rank."""
        return self.beside_gpu if resources.n_gpus else self.on_cpu


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How many trials run at the same time, and what says so."""

    trials: int
    because: str


def largest_trials(spec: SweepSpec) -> list[TrialConfig]:
    """One trial for each combination of losses, batch and place of the adapter, with its largest rank."""
    found: dict[Any, TrialConfig] = {}
    for proposal in corner_proposals(spec):
        trial = bind(spec, proposal, where="sweep")
        adapter, method = trial.adapter, trial.method
        losses = (method.forget_loss, method.retain_loss, method.retain_source)
        place = (adapter.kind, adapter.targets, adapter.layers, method.adapter_init == "lora")
        key = (losses, place, trial.batch)
        if key not in found or found[key].adapter.rank < adapter.rank:
            found[key] = trial
    return list(found.values())


def rank_needs(spec: SweepSpec, *, slots: int = 1) -> Needs | None:
    """What a rank of the sweep's largest trial needs; ``None`` where model or data cannot be looked at.

    Loads torch. With ``slots`` it is what a rank of a pack of such trials needs. What is wrong with model or data
    is said when they are read.
    """
    from core.estimate import new_outlines, rank_memory

    if not is_model_here(spec):
        return None
    try:
        outlines = new_outlines()
        memories = [
            rank_memory(trial, outlines=outlines, slots=slots) for trial in largest_trials(spec)
        ]
    except UserError:
        return None
    gib = 2**30
    return Needs(
        on_cpu=max(m.on_cpu for m in memories) / gib,
        on_gpu=max(m.on_gpu for m in memories) / gib,
        beside_gpu=max(m.beside_gpu for m in memories) / gib,
        is_bound=any(m.is_bound for m in memories),
    )


def is_model_here(spec: SweepSpec) -> bool:
    """Whether a packaged model was converted before: looking at it downloads nothing."""
    from core.model.packaged import cached_folder

    kind, _, name = str(spec.model.get("source")).partition(":")
    return kind != "package" or cached_folder(name) is not None


def with_gpus(spec: SweepSpec, cluster: Cluster, needs: Needs | None) -> SweepSpec:
    """The sweep with ``resources.gpus_per_rank: auto`` resolved.

    0 without a GPU, or where ``engine.device`` is ``cpu``. Else the share of a GPU that the estimate needs, in
    hundredths and at most 1; a whole one where a trial has several ranks, of which no two may share a GPU, or
    where the estimate or the GPU's memory is not known, or ``engine.device`` is ``cuda`` and there is no GPU.
    """
    resources = spec.resources
    if resources.gpus_per_rank != "auto":
        return spec
    share, device = 1.0, spec.engine.get("device", "auto")
    if device == "cpu" or (device == "auto" and cluster.gpus == 0):
        share = 0.0
    elif resources.ranks_per_trial == 1 and needs is not None and cluster.gpu_memory_gib:
        whole = GPU_SPARE * needs.on_gpu / cluster.gpu_memory_gib
        share = min(1.0, math.ceil(round(100 * whole, 6)) / 100)
    changed = resources.model_copy(update={"gpus_per_rank": share})
    return spec.model_copy(update={"resources": changed})


def lacking(resources: ResourcesSpec, cluster: Cluster) -> str | None:
    """Why not even one trial finds its cores and GPUs, with what to do, or ``None``."""
    ranks = resources.ranks_per_trial
    cpus, gpus = ranks * resources.cpus_per_rank, ranks * resources.n_gpus
    if cpus <= cluster.cpus and gpus <= cluster.gpus:
        return _scattered(resources, cluster)
    hidden = f" ({cluster.gpus_because})" if gpus > cluster.gpus and cluster.gpus_because else ""
    return (
        f"resources: a trial needs {cpus} CPUs and {gpus:g} GPUs "
        f"({ranks} ranks x {resources.cpus_per_rank} CPUs, {resources.n_gpus:g} "
        f"GPUs), but only {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs are there{hidden}; lower "
        "resources.ranks_per_trial, cpus_per_rank or gpus_per_rank, or give --address of a cluster that has them"
    )


def _scattered(resources: ResourcesSpec, cluster: Cluster) -> str | None:
    """Why a trial finds no place on nodes that together would have enough, or ``None``."""
    if not cluster.rooms or cluster.trials(resources):
        return None
    nodes = ", ".join(f"{room.cpus:g} CPUs and {room.gpus:g} GPUs" for room in cluster.rooms)
    return (
        f"resources: {resources.ranks_per_trial} ranks of {resources.cpus_per_rank} CPUs and {resources.n_gpus:g} "
        f"GPUs with placement {resources.placement} find no place on the nodes, which have {nodes}; lower what a rank "
        "takes, or give placement: pack"
    )


def with_room(cluster: Cluster, resources: ResourcesSpec) -> Cluster:
    """The cluster with at least the cores and GPUs of one trial: to look ahead where the sweep will not run."""
    if lacking(resources, cluster) is None:
        return cluster
    ranks = resources.ranks_per_trial
    return replace(
        cluster,
        cpus=max(cluster.cpus, ranks * resources.cpus_per_rank),
        gpus=max(cluster.gpus, ranks * resources.n_gpus),
        called="a machine with room for one trial",
        rooms=(),
    )


def concurrent_trials(
    resources: ResourcesSpec,
    cluster: Cluster,
    needs: Needs | None = None,
    *,
    may_grow: bool = False,
) -> Fitting:
    """Trials at the same time: what is asked for, or as many as fit.

    Args:
        resources: What a trial occupies, with ``gpus_per_rank`` resolved.
        cluster: What there is, or what an autoscaling cluster may become.
        needs: What a rank needs of memory; a rank is counted with 3 GiB if absent.
        may_grow: An autoscaling cluster may add nodes, so that nothing is refused.

    Raises:
        UserError: If not even one trial fits.
    """
    ranks = resources.ranks_per_trial
    cpus, gpus = ranks * resources.cpus_per_rank, ranks * resources.n_gpus
    fits = [
        Fitting(
            trials=int(cluster.cpus // cpus), because=f"{cluster.cpus:g} cores of {cluster.called}"
        )
    ]
    if gpus:
        because = f"{cluster.gpus:g} GPUs of {cluster.called}, {resources.n_gpus:g} for a rank"
        fits.append(Fitting(trials=int(cluster.gpus / gpus + 1e-9), because=because))
    if cluster.rooms:
        because = _by_nodes(resources, cluster)
        fits.append(Fitting(trials=cluster.trials(resources), because=because))
    fitting = min(fits, key=lambda fit: fit.trials)
    lack = lacking(resources, cluster)
    if lack is not None and not may_grow:
        raise UserError(lack)
    asked = resources.max_concurrent
    if asked != "auto":
        largest = asked if may_grow else min(asked, max(1, fitting.trials))
        because = "resources.max_concurrent" if largest == asked else fitting.because
        return Fitting(trials=largest, because=because)
    if cluster.memory_gib is not None:
        gib = RANK_MEMORY_GIB if needs is None else needs.of_machine(resources)
        free = cluster.memory_gib - DRIVER_GIB
        because = f"{cluster.memory_gib:.1f} GiB of free memory, {gib:.1f} for a rank"
        in_memory = Fitting(trials=int(free / (ranks * gib)), because=because)
        fitting = min(fitting, in_memory, key=lambda fit: fit.trials)
    return Fitting(trials=max(1, fitting.trials), because=fitting.because)


def _by_nodes(resources: ResourcesSpec, cluster: Cluster) -> str:
    """What limits trials beyond sums of cores and GPUs: a rank lies on one node, and its share on one GPU."""
    if len(cluster.rooms) == 1:
        return f"{cluster.gpus:g} GPUs of {cluster.called}, {resources.n_gpus:g} of one for a rank"
    return f"{len(cluster.rooms)} nodes of {cluster.called}, with placement {resources.placement}"


@dataclass(frozen=True, kw_only=True)
class Running:
    """What runs at the same time.

    Attributes:
        trials: Trials.
        workers: Sets of ranks that they run on.
        slots: Trials that a worker packs into one pass; 1 where trials are not packed.
        because: What says so.
    """

    trials: int
    workers: int
    slots: int
    because: str


def asked_slots(spec: SweepSpec) -> int:
    """Trials of a pack that the file asks for; 1 while ``auto`` is not resolved."""
    asked = spec.trial_engine().packing
    return 1 if asked == "auto" else asked


def at_the_same_time(
    spec: SweepSpec,
    cluster: Cluster,
    needs: Needs | None = None,
    *,
    slots: int,
    may_grow: bool = False,
) -> Running:
    """What of a sweep runs at the same time.

    Args:
        spec: The sweep, with ``resources.gpus_per_rank`` resolved.
        cluster: What there is.
        needs: What a rank needs of memory.
        slots: Trials of a worker, at most.
        may_grow: An autoscaling cluster may add nodes.

    Raises:
        UserError: If not even one trial fits.
    """
    asked = spec.resources.max_concurrent
    most = spec.budget.trials if asked == "auto" else min(asked, spec.budget.trials)
    resources = spec.resources
    if asked != "auto":
        resources = resources.model_copy(update={"max_concurrent": math.ceil(asked / slots)})
    fitting = concurrent_trials(resources, cluster, needs, may_grow=may_grow)
    workers = min(fitting.trials, math.ceil(most / slots))
    trials = min(most, workers * slots)
    slots, because = math.ceil(trials / workers), fitting.because
    if slots > 1:
        packs = "one pack" if workers == 1 else f"{workers} packs"
        because = f"{packs} of {slots} trials; {because}"
    return Running(trials=trials, workers=workers, slots=slots, because=because)


def largest_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Most CPUs and GPUs that an autoscaling cluster of a cluster file may have.

    Each resource on its own: ``max_workers`` of the file, spread over the node types that have most of it.
    """
    types: Mapping[str, Any] = config.get("available_node_types") or {}
    head = config.get("head_node_type")
    most = {}
    for name in ("CPU", "GPU"):
        total = float(((types.get(str(head)) or {}).get("resources") or {}).get(name, 0))
        left = int(config.get("max_workers", 0))
        offers = ((float((t.get("resources") or {}).get(name, 0)), t, n) for n, t in types.items())
        for amount, node_type, type_name in sorted(offers, key=lambda offer: -offer[0]):
            if type_name == head:
                continue
            nodes = min(left, int(node_type.get("max_workers", left)))
            total, left = total + nodes * amount, left - nodes
        most[name] = total
    return most


def read_largest(path: Path) -> dict[str, float] | None:
    """:func:`largest_of` the file that Ray leaves on a head that it started; ``None`` if there is none."""
    if not path.is_file():
        return None
    try:
        config, _ = strict_yaml.load(read_text(path), allows_aliases=True)
    except (FileError, yaml.YAMLError) as err:
        raise UserError(
            f"{path}: is no cluster file of Ray's: {in_a_line(err)}; remove it"
        ) from err
    return largest_of(config) if isinstance(config, dict) else None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a sweep needs, roughly.

    Attributes:
        concurrent: Trials at the same time.
        because: What says so.
        gpus_per_rank: GPUs of a rank, resolved.
        parameters: Weights of the model; ``None`` if they cannot be told without loading it.
        adapter_parameters: Trained weights: of the largest adapter, or all.
        rank_gib: Memory of the machine for one rank of the largest trial.
        rank_gpu_gib: Memory of a GPU for the same rank, if it computes there.
        rows_are_known: The largest passes are those of the trial's own rows.
        memory_gib: Memory of all trials at the same time, and the driver.
        disk_gib: Adapters of all trials, the shared artifacts, and checkpoints.
        checkpoints_gib: Of that, what checkpoints of running trials take at most; they go when a trial is told.
        time_s: Seconds if no trial is stopped early, and if half of the steps are saved.
        lacking: What keeps a single trial from running here, as the sweep would say it; the rest is then of a
            machine that has just room for one.
    """

    concurrent: int
    because: str
    gpus_per_rank: float
    parameters: int | None = None
    adapter_parameters: int | None = None
    rank_gib: float | None = None
    rank_gpu_gib: float | None = None
    rows_are_known: bool = False
    memory_gib: float | None = None
    disk_gib: float | None = None
    checkpoints_gib: float | None = None
    time_s: tuple[float, float] | None = None
    lacking: str | None = None


def free_disk_gib(path: Path) -> float:
    """Free space where ``path`` is, or will be."""
    return shutil.disk_usage(existing_part(path)).free / 2**30


def estimate(
    spec: SweepSpec,
    cluster: Cluster,
    *,
    shape: Mapping[str, int] | None,
    needs: Needs | None,
    seconds_per_step: float | None,
) -> Estimate:
    """Estimate a sweep.

    Args:
        spec: The sweep, with ``resources.gpus_per_rank`` resolved.
        cluster: What it runs on.
        shape: ``parameters``, ``vocabulary``, ``linear_in_plus_out`` (summed over target layers) of the
            model, where it is known.
        needs: What a rank needs of memory, where that is known.
        seconds_per_step: Of one optimiser step with its probe, where it is known.
    """
    room = with_room(cluster, spec.resources)
    running = at_the_same_time(spec, room, needs, slots=asked_slots(spec))
    known: dict[str, Any] = {"lacking": lacking(spec.resources, cluster)}
    if shape is not None:
        rank = largest_rank(spec)
        is_full = spec.adapter.get("kind") == "full"
        adapter = shape["parameters"] if is_full else rank * shape["linear_in_plus_out"]
        frozen = 2 if spec.engine.get("dtype") == "bf16" else 4
        # bytes of a trained weight: the model's own, or twice the rank
        saved = frozen if is_full else 8
        disk = (spec.budget.trials * saved * adapter + 12 * shape["parameters"]) / 2**30
        checkpoints = 0.0
        if spec.budget.checkpoint_every != "off":
            at_once = KEPT + 1  # the next one is written before the oldest goes
            checkpoints = at_once * running.trials * (CHECKPOINT_BYTES + saved) * adapter / 2**30
        known |= {"parameters": shape["parameters"], "adapter_parameters": adapter}
        known |= {"disk_gib": disk + checkpoints, "checkpoints_gib": checkpoints}
    if needs is not None:
        gib = needs.of_machine(spec.resources)
        known |= {"rank_gib": gib, "rank_gpu_gib": needs.on_gpu}
        known["rows_are_known"] = not needs.is_bound
        known["memory_gib"] = DRIVER_GIB + running.workers * spec.resources.ranks_per_trial * gib
    if seconds_per_step is not None:
        whole = seconds_per_step * spec.budget.max_steps * spec.budget.trials / running.workers
        known["time_s"] = (0.5 * whole, whole)
    return Estimate(
        concurrent=running.trials,
        because=running.because,
        gpus_per_rank=spec.resources.n_gpus,
        **known,
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
