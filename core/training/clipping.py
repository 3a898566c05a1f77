"""Clipping inside the optimiser, of what it steps.

An engine's own reads each gradient alone, in float64, and looks at the norm: on a GPU that is two launches a tensor,
and a wait for the device at each step. Here all norms of a step are one launch, and nobody looks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.config import EngineConfig, OptimizerConfig

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks in place, and gives it back."""


def may_leave_out_norm(engine: EngineConfig) -> bool:
    """Whether DeepSpeed makes a step without a norm: where it has partitions, and has them on the device."""
    return engine.zero_stage in (1, 2) and engine.offload == "none"


def clips_itself(engine: EngineConfig, dtype: torch.dtype) -> bool:
    """Whether an engine of one trial leaves clipping to its optimiser.

    In float32 its own norm has a second use: a step whose gradient is not finite is left out.
    """
    return may_leave_out_norm(engine) and dtype == torch.bfloat16


@torch.no_grad()
def clip(parameters: Sequence[Tensor], largest: float, *, n_weights: int, total: Total) -> None:
    """Scale the gradient of some parameters down to its largest norm, in place.

    Args:
        parameters: What this rank holds of them.
        largest: Largest norm of the gradient of all ranks' together; 0 leaves it as it is.
        n_weights: Of all ranks' together.
        total: Sums over the ranks.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads or largest == 0.0:
        return
    squared = torch.stack(torch._foreach_norm(grads)).square().sum()
    if sum(p.numel() for p in parameters) < n_weights:  # each rank holds a part
        squared = total(squared)
    torch._foreach_mul_(grads, (largest / (squared.sqrt() + 1e-6)).clamp(max=1.0))


def size(parameter: Tensor) -> int:
    """Weights of a parameter, of which a rank may hold a part."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class ClippingAdamW(torch.optim.AdamW):
    """AdamW of one trial, that clips first where the engine around it does not."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        config: OptimizerConfig,
        *,
        largest_norm: float,
        total: Total,
    ) -> None:
        """Begin with a rate of 0: it is set at each step, and some wrappers make one while they are built.

        Args:
            parameters: What is trained, whole.
            config: Its settings.
            largest_norm: Of the gradient; 0 leaves it as it is.
            total: Sums over the ranks.
        """
        super().__init__(
            parameters,
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the weights instead of ten
        )
        self._largest_norm, self._total = largest_norm, total
        self._n_weights = sum(map(size, parameters))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip, and step."""
        held = [p for group in self.param_groups for p in group["params"]]
        clip(held, self._largest_norm, n_weights=self._n_weights, total=self._total)
        super().step()
