"""What a trial needs on each rank, before it runs: from its own rows, steps, model, adapter and losses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from core.config import DataConfig, TrialConfig
from core.data.batches import rows_by_length
from core.data.tokens import TokenSplits, measured_part
from core.losses import FORGET_LOSSES, RETAIN_LOSSES
from core.metrics.probes import MEASURED
from core.model.layers import linear_shape, output_layer, resolve_targets
from core.model.loading import outlined_model
from core.model.quantised import BYTES_PER_WEIGHT
from core.training.memory import (
    Pass,
    held_states,
    loss_width,
    n_roles,
    reading_width,
    traced_probe,
    traced_step,
)
from core.training.passes import MicroBatch
from core.training.ranks import Group
from core.training.steps import Steps
from core.training.warm import Warm

PROCESS_BYTES = 500 * 2**20
"""A rank's process without a model: interpreter, torch, DeepSpeed, transformers, PEFT, Ray."""
CUDA_BYTES = 600 * 2**20
"""What a process takes of a GPU before the first tensor: context and libraries."""
HEAP = 1.45
"""What the heap of a CPU process grows to, over the activations in it: glibc keeps what is freed, in pieces."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank of a trial needs at its peak, bytes.

    Attributes:
        weights: Weights, gradients and optimiser states on the device that computes.
        offloaded: Optimiser states beside it.
        activations: What a step keeps for its backward pass.
        step_logits: Logits of a step, what its losses make of them, and their gradients.
        backward: The most that a forward and backward pass hold together, whatever the losses.
        probe_logits: Logits of a probe, and what is made of them.
        is_bound: The lengths of the rows are not known, and each is taken to be as long as it may be.
    """

    weights: int
    offloaded: int
    activations: int
    step_logits: int
    backward: int
    probe_logits: int
    is_bound: bool

    @property
    def on_cpu(self) -> int:
        """Memory of the machine, for a rank that computes on the CPU.

        Activations lie in the heap, which does not shrink; logits are large enough to be given back.
        """
        heap = round(HEAP * self.activations)
        passes = max(heap + max(self.step_logits, self.probe_logits), self.backward)
        return PROCESS_BYTES + self.weights + self.offloaded + passes

    @property
    def on_gpu(self) -> int:
        """Memory of the GPU, for a rank that computes there."""
        passes = max(self.activations + self.step_logits, self.backward, self.probe_logits)
        return CUDA_BYTES + self.weights + passes

    @property
    def beside_gpu(self) -> int:
        """Memory of the machine, for a rank that computes on a GPU: weights pass through it."""
        return PROCESS_BYTES + self.weights + self.offloaded


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest passes of a trial.

    Attributes:
        step: Of a step.
        probe: Of a probe.
        is_bound: The rows were not looked at.
    """

    step: Pass
    probe: Pass
    is_bound: bool


def rank_memory(trial: TrialConfig, *, outlines: Warm | None = None, slots: int = 1) -> RankMemory:
    """What a rank of a trial needs.

    Args:
        trial: The trial.
        outlines: Outlines of models and rows that were read for other trials; see :func:`new_outlines`.
        slots: Trials like it that share the frozen model and each pass of a step; they probe in turn.

    Raises:
        UserError: If model or data are not as the trial says, or the model's configuration is not here.
    """
    outlines = outlines or new_outlines()
    model, largest = outlines.model(trial), largest_passes(trial, outlines)
    method, width = trial.method, torch.finfo(model.dtype).bits // 8
    retain = RETAIN_LOSSES[method.retain_loss]
    needs = FORGET_LOSSES[method.forget_loss].needs | (retain.needs if retain else frozenset())
    kept = needs & {"hidden", "residuals"}
    step = traced_step(
        trial.model,
        trial.adapter,
        replace(largest.step, rows=slots * largest.step.rows),
        dtype=model.dtype,
        needs=kept,
        checkpoints=trial.engine.activation_checkpointing,
    )
    probe = traced_probe(trial.model, trial.adapter, largest.probe, dtype=model.dtype)
    frozen, trained = n_weights(trial, model.network)
    if slots > 1:  # each has its own factors
        base = sum(p.numel() for p in model.network.parameters())
        frozen, trained = base + slots * (frozen - base), slots * trained
    states = held_states(
        frozen, trained, trial.engine, width=width, splits_frozen=trial.partitions == "base"
    )
    saved = 0
    if trial.model.quantisation != "none":
        saved = quantisation_saves(model.network, width=width)
    return RankMemory(
        weights=states.device - saved,
        offloaded=states.offloaded,
        activations=step.forward,
        step_logits=round(loss_width(method, dtype=model.dtype) * step.logits),
        backward=step.largest,
        probe_logits=probe.largest + round(reading_width(dtype=model.dtype) * probe.logits),
        is_bound=largest.is_bound,
    )


def quantisation_saves(network: nn.Module, *, width: int) -> int:
    """Bytes that 4-bit linear layers save, but for one layer at a time as numbers; the output layer stays as it is.

    Args:
        network: The model as it is not quantised.
        width: Bytes of its weights.
    """
    sizes = [
        math.prod(linear_shape(module))
        for module in network.modules()
        if isinstance(module, nn.Linear) and module is not output_layer(network)
    ]
    return round((width - BYTES_PER_WEIGHT) * sum(sizes)) - width * max(sizes, default=0)


def new_outlines() -> Warm:
    """What estimates for several trials share: the outline of each model, and its rows, read once."""
    return Warm(load=outlined_model)


def n_weights(trial: TrialConfig, network: nn.Module) -> tuple[int, int]:
    """Frozen and trained weights: of model and adapter, whose initial factors are frozen too."""
    total = sum(p.numel() for p in network.parameters())
    if trial.adapter.kind == "full":
        return total, total
    names = resolve_targets(
        network, trial.adapter.targets, rank=trial.adapter.rank, layers=trial.adapter.layers
    )
    shapes = [linear_shape(network.get_submodule(name)) for name in names]
    b, a = (trial.adapter.rank * sum(side) for side in zip(*shapes, strict=True))
    return total + a + (0 if trial.method.adapter_init == "lora" else b), a + b


def largest_passes(trial: TrialConfig, outlines: Warm) -> Largest:
    """The largest passes among those that the trial will make; bounds where its data are elsewhere.

    Raises:
        UserError: If the data are not as the trial says.
    """
    if not is_here(trial.data):
        return bounds(trial)
    model, data = outlines.model(trial), outlines.data(trial)
    recorder = _Recorder()
    steps = Steps(trial, model, data)
    for _ in range(trial.selection.max_steps):
        steps.train(recorder, Group(rank=0, size=1))
    probed = _probe_passes(trial, data)
    return Largest(step=_largest(recorder.passes), probe=_largest(probed), is_bound=False)


def bounds(trial: TrialConfig) -> Largest:
    """The largest passes that a trial could make, whatever its rows.

    Raises:
        ValueError: Under ``batch.whole_forget_set``, where the rows say how many are read.
    """
    sources = (trial.data.forget, trial.data.retain, trial.data.general)
    tokens = max(source.max_tokens for source in sources)
    rows = trial.batch.micro_batch_size or trial.batch_plan().micro_batch_size
    return Largest(
        step=Pass(rows=((tokens, 0),) * (rows * n_roles(trial.method))),
        probe=Pass(rows=((tokens, 0),) * trial.batch.probe_batch_size),
        is_bound=True,
    )


def is_here(data: DataConfig) -> bool:
    """Whether all rows can be read without a download."""
    sources = data.sources.values()
    return all(s.source.startswith("embedded:") or Path(s.source).exists() for s in sources)


class _Recorder:
    """Runs no model; keeps what passes would be made."""

    def __init__(self) -> None:
        self.passes: set[Pass] = set()

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        for batch in micro_batches:
            rows = [row for part in batch.parts for row in part.rows]
            self.passes.add(Pass.of(rows))


def _probe_passes(trial: TrialConfig, data: TokenSplits) -> set[Pass]:
    names = [measured_part(name, "probe") for name in MEASURED]
    measured = [row for name in names for row in data[name]]
    size = trial.batch.probe_batch_size
    return {Pass.of(rows) for _, rows in rows_by_length(measured, size=size)}


def _largest(passes: set[Pass]) -> Pass:
    return max(passes, key=lambda at: at.tokens)
