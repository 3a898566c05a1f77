"""Door to deepspeed: the training engine."""

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.config import BatchPlan, EngineConfig, OptimizerConfig
from core.training.adapter import Gather
from core.training.ranks import deepspeed


class Engine(Gather):
    """DeepSpeed around a model whose trainable parameters are the adapter's increments."""

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        plan: BatchPlan,
        max_steps: int,
        dtype: torch.dtype,
    ) -> None:
        """Build the DeepSpeed engine; ``model`` must be complete, on its device and in ``dtype``."""
        self._optimizer_config, self._plan, self._max_steps = optimizer, plan, max_steps
        trained = [p for p in model.parameters() if p.requires_grad]
        client = torch.optim.AdamW(
            trained,
            lr=0.0,  # set at each step; some of DeepSpeed's wrappers make one while they are built
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        )
        self._engine, *_ = deepspeed().initialize(
            model=model,
            optimizer=client,
            model_parameters=trained,
            dist_init_required=False,
            config=_deepspeed_config(engine, optimizer, plan, dtype),
        )
        if engine.zero_stage == 0:
            client.state.clear()  # that step's moments, which would count as a first one
        self._stage = engine.zero_stage
        self._step = 0

    def forward(
        self, ids: Tensor, mask: Tensor, *, block: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, T, V)``, and the output of ``block`` ``(B, T, D)`` if one is named."""
        output = self._engine(
            input_ids=ids,
            attention_mask=mask,
            use_cache=False,
            output_hidden_states=block is not None,
        )
        hidden = None if block is None else output.hidden_states[block + 1]
        return output.logits, hidden

    @property
    def module(self) -> nn.Module:
        """The model itself, for evaluation without the engine's bookkeeping."""
        model: nn.Module = self._engine.module
        return model

    def step(self, micro_losses: Iterable[Callable[[], Tensor]]) -> None:
        """One optimiser step.

        Args:
            micro_losses: One thunk for each micro-batch of this rank. Each gives this micro-batch's
                *share* of the global loss: the shares of all micro-batches and ranks add up to it.
                DeepSpeed averages over micro-batches and ranks; that is undone here, so that the
                gradient is the one of the sum.
        """
        self._set_learning_rate()
        averaged_over = self._plan.gradient_accumulation_steps * self._plan.ranks
        for compute in micro_losses:
            self._engine.backward(compute() * averaged_over)
            self._engine.step()
        self._step += 1

    def _set_learning_rate(self) -> None:
        config = self._optimizer_config
        rate = config.learning_rate
        if self._step < config.warmup_steps:
            rate *= (self._step + 1) / (config.warmup_steps + 1)
        elif config.schedule == "linear":
            left = self._max_steps - self._step
            rate *= left / max(1, self._max_steps - config.warmup_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, parameter: Tensor) -> Tensor:
        """Full float32 value of a trained parameter: the master copy where there is one."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self._stage == 0 and parameter.dtype == torch.float32:
            return super().__call__(parameter)
        value = safe_get_full_fp32_param(parameter)
        if value is None:
            return super().__call__(parameter)
        full: Tensor = value.detach().float().cpu()
        return full.reshape(_full_shape(parameter))

    def destroy(self) -> None:
        """Free everything, so that the next trial of this process starts clean."""
        self._engine.destroy()
        del self._engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _full_shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _deepspeed_config(
    engine: EngineConfig, optimizer: OptimizerConfig, plan: BatchPlan, dtype: torch.dtype
) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW: nothing to compile
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "gradient_clipping": optimizer.gradient_clipping,
        "steps_per_print": 10**9,
    }
