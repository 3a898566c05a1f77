"""Door to deepspeed: the training engine."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from core.config import BatchPlan, EngineConfig, OptimizerConfig
from core.model.loading import LoadedModel
from core.training.clipping import ClippingAdamW, clips_itself, may_leave_out_norm, size
from core.training.optimizer_state import OptimizerState
from core.training.passes import Forwarded, MicroBatch, Part
from core.training.ranks import Group, deepspeed, zero_options
from core.training.reading import read_parts
from core.training.trained import LARGEST_BUCKET, Trained, float32_on_cpu


class Engine:
    """DeepSpeed around what is trained. It runs the model; what is computed of the outputs comes from outside.

    Attributes:
        held: What its optimiser holds on this rank, all of it in one group.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        plan: BatchPlan,
        max_steps: int,
        model: LoadedModel,
        group: Group,
    ) -> None:
        """Build the DeepSpeed engine around what is trained of ``model``, on the ranks of ``group``."""
        self._optimizer_config, self._plan, self._max_steps = optimizer, plan, max_steps
        self._trained, self._reader, self._device = trained, model.reader, model.device
        parameters = [p for p in trained.model.parameters() if p.requires_grad]
        largest, clips = optimizer.gradient_clipping, clips_itself(engine, model.dtype)
        client = ClippingAdamW(
            parameters,
            optimizer,
            largest_norm=largest if clips else 0.0,
            total=group.sum,
        )
        self._engine, *_ = deepspeed().initialize(
            model=trained.model,
            optimizer=client,
            model_parameters=parameters,
            dist_init_required=False,
            config=deepspeed_config(
                engine,
                model.dtype,
                n_trained=sum(map(size, parameters)),
                micro_batch_size=plan.micro_batch_size,
                gradient_accumulation_steps=plan.gradient_accumulation_steps,
                gradient_clipping=0.0 if clips else largest,
                without_norm=clips,
            ),
        )
        if engine.zero_stage == 0:
            client.state.clear()  # that step's moments, which would count as a first one
        self._stage, self._checkpoints = engine.zero_stage, engine.activation_checkpointing
        self.held = OptimizerState(self._engine.optimizer, zero_stage=engine.zero_stage)
        self._step = self._n_passes = 0

    def forward(self, parts: Sequence[Part]) -> list[Forwarded]:
        """One training pass over the rows of all parts together; see :func:`~core.training.reading.read_parts`."""
        self._n_passes += 1
        number = self._n_passes, int(self._engine.global_rank)

        def dropping(positions: Sequence[int]) -> AbstractContextManager[None]:
            return self._trained.dropping(*number)

        return read_parts(
            self._engine,
            parts,
            module=self.module,
            reader=self._reader,
            device=self._device,
            trained=self._trained,
            checkpoints=self._checkpoints,
            dividing=dropping,
        )

    @property
    def module(self) -> nn.Module:
        """The model itself, for evaluation without the engine's bookkeeping."""
        model: nn.Module = self._engine.module
        return model

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step.

        Args:
            micro_batches: Those of this rank. Each gives its *share* of the global loss. DeepSpeed averages
                over micro-batches and ranks; that is undone here, so that the gradient is the one of the
                sum.
        """
        self._set_learning_rate()
        averaged_over = self._plan.gradient_accumulation_steps * self._plan.ranks
        for micro_batch in micro_batches:
            loss = micro_batch.share(self.forward(micro_batch.parts))
            self._engine.backward(loss * averaged_over)
            self._engine.step()
        self._step += 1

    def go_on_from(self, tensors: Mapping[str, Tensor], *, step: int, group: Group) -> None:
        """Be as after ``step`` steps, of which this rank's ``held`` gave ``tensors``; every rank takes part."""
        self.held.write(0, tensors)
        self.held.publish(0, group)
        self._step, self._n_passes = step, step * self._plan.gradient_accumulation_steps

    def _set_learning_rate(self) -> None:
        rate = rate_at(self._step, self._optimizer_config, max_steps=self._max_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of a trained parameter on the CPU: the master copy where there is one."""
        return full_value(parameter, zero_stage=self._stage)

    def destroy(self) -> None:
        """Free everything, so that the next trial of this process starts clean."""
        self._engine.destroy()
        del self._engine, self.held
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def rate_at(step: int, config: OptimizerConfig, *, max_steps: int) -> float:
    """Learning rate of the step after ``step`` others, by warm-up and schedule."""
    rate = config.learning_rate
    if step < config.warmup_steps:
        rate *= (step + 1) / (config.warmup_steps + 1)
    elif config.schedule == "linear":
        rate *= (max_steps - step) / max(1, max_steps - config.warmup_steps)
    return rate


def full_value(parameter: Tensor, *, zero_stage: int) -> Tensor:
    """Full float32 value of a parameter that an engine trains, on the CPU; every rank must take part."""
    from deepspeed.utils import safe_get_full_fp32_param

    if zero_stage == 0 and parameter.dtype == torch.float32:
        return float32_on_cpu(parameter)
    value = safe_get_full_fp32_param(parameter)
    if value is None:
        return float32_on_cpu(parameter)
    full: Tensor = value.detach().float().cpu()
    return full.reshape(_full_shape(parameter))


def _full_shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def deepspeed_config(
    engine: EngineConfig,
    dtype: torch.dtype,
    *,
    n_trained: int,
    micro_batch_size: int = 1,
    gradient_accumulation_steps: int = 1,
    gradient_clipping: float = 0.0,
    without_norm: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's configuration for an engine that trains ``n_trained`` weights.

    Args:
        engine: Stage, and what lies on the host.
        dtype: Of the weights.
        n_trained: Weights that are trained.
        micro_batch_size: Rows of a pass on each rank.
        gradient_accumulation_steps: Passes of a step.
        gradient_clipping: Largest norm of a gradient; 0 switches clipping off.
        without_norm: Whether nobody asks for the norm: then it is not computed, where it can be left out.
    """
    zero = zero_options(engine)
    if without_norm and may_leave_out_norm(engine):
        zero["compute_grad_norm"] = False
    if engine.zero_stage in (1, 2):
        # it takes the whole bucket at each step, 2 GB by default; gradients of an adapter are far fewer
        zero["reduce_bucket_size"] = min(LARGEST_BUCKET, n_trained)
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW: nothing to compile
        "zero_force_ds_cpu_optimizer": False,
        # its range is that of float32: what is not finite is seen by the next probe, without a scan at each step
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": False},
        "gradient_clipping": gradient_clipping,
        "steps_per_print": 10**9,
    }
