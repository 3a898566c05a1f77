"""What an engine's optimiser holds on this rank: read into named tensors, and put back bit for bit.

DeepSpeed steps float32 masters in place of the parameters, unless these are float32 and whole: from stage 1 on each
rank has a part of them. What the model computes with follows from the masters, so it is not kept. Nothing else of a
DeepSpeed engine lasts from step to step: its counters say where in an optimiser step it is, and a checkpoint lies
between two.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.training.ranks import Group

_MASTER = "master"


class OptimizerState:
    """Masters and moments of one parameter group after another, on this rank."""

    def __init__(self, wrapped: Any, *, zero_stage: int) -> None:
        """Look at the optimiser that DeepSpeed made around the client's, or at the client's itself."""
        self._wrapped, self._stage = wrapped, zero_stage
        is_client = isinstance(wrapped, torch.optim.Optimizer)
        self._client: torch.optim.Optimizer = wrapped if is_client else wrapped.optimizer

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds all of it, and the same."""
        return self._stage == 0

    def sizes(self, group: int) -> list[int]:
        """Weights of each master on this rank: they tell one way of sharing them out from another."""
        return [master.numel() for master in self._masters(group)]

    def read(self, group: int) -> dict[str, Tensor]:
        """Copies on the CPU: of each master, and of what the optimiser remembers of it."""
        held: dict[str, Tensor] = {}
        for i, master in enumerate(self._masters(group)):
            held[f"{i}.{_MASTER}"] = master
            held |= {f"{i}.{name}": value for name, value in self._remembered(master).items()}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()}

    @torch.no_grad()
    def write(self, group: int, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`read` gave, under an engine that shares its weights out in the same way."""
        for i, master in enumerate(self._masters(group)):
            own = {
                name.partition(".")[2]: tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{i}.")
            }
            master.copy_(own.pop(_MASTER))
            if not own:  # it has not been stepped
                self._client.state.pop(master, None)
                continue
            remembered = self._client.state[master]
            for name, value in own.items():
                if name in remembered:
                    remembered[name].copy_(value)
                else:
                    remembered[name] = value.to(self._place_of(value, master, group), copy=True)

    @torch.no_grad()
    def publish(self, group: int, ranks: Group) -> None:
        """Have the model compute with the masters, as after a step; every rank takes part."""
        wrapped, masters = self._wrapped, self._masters(group)
        if self._stage == 3:
            for sub_group, of in wrapped.sub_group_to_group_id.items():
                if of == group:
                    wrapped._reassign_or_swap_out_partitioned_parameters(sub_group)
            kept = wrapped.persistent_parameters  # small ones, which stay whole on every rank
            if kept:
                kept[0].partition(kept)
                kept[0].all_gather(kept)
        elif self._stage > 0:
            parts = wrapped.parallel_partitioned_bit16_groups[group]
            parts[ranks.rank].copy_(masters[0])
            ranks.share_parts(parts)
        elif wrapped is not self._client:
            for parameter, master in zip(wrapped.fp16_groups[group], masters, strict=True):
                parameter.copy_(master)

    def _masters(self, group: int) -> list[Tensor]:
        if self._stage == 3:  # they are in the client's groups during a step only
            of = self._wrapped.sub_group_to_group_id
            every = self._wrapped.fp32_partitioned_groups_flat
            return [master for i, master in enumerate(every) if of[i] == group]
        return list(self._client.param_groups[group]["params"])

    def _remembered(self, master: Tensor) -> Mapping[str, Tensor]:
        remembered: Mapping[str, Tensor] = self._client.state.get(master, {})
        return remembered

    def _place_of(self, value: Tensor, master: Tensor, group: int) -> torch.device:
        """Torch counts the steps of a fused optimiser where its weights are, and of others on the CPU."""
        is_count = value.dim() == 0
        if is_count and not self._client.param_groups[group]["fused"]:
            return torch.device("cpu")
        return master.device
