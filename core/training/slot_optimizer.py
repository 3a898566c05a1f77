"""AdamW for several slots at once: each has its own settings, steps only when it is asked to, and can begin anew."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from core.config import OptimizerConfig
from core.training.clipping import Total, clip, size


class SlotAdamW(torch.optim.AdamW):
    """One parameter group for each slot.

    It may stand inside an engine that puts partitions of its own in the place of the parameters, on every rank
    another, or calls it once for each group: a slot is known by its group.
    """

    def __init__(self, slots: Sequence[Sequence[nn.Parameter]], *, total: Total) -> None:
        """Begin with slots that are not asked to step.

        Args:
            slots: Parameters of each.
            total: Sums a tensor over the ranks in place, and gives it back.
        """
        super().__init__([{"params": list(own), "slot": i} for i, own in enumerate(slots)], lr=0.0)
        self._groups = {group["slot"]: group for group in self.param_groups}
        self._n_weights = [sum(map(size, own)) for own in slots]
        self._clipping = [0.0] * len(slots)
        self._total = total
        self._asked: frozenset[int] = frozenset()
        self._begins_anew: set[int] = set()

    def begin_anew(self, slot: int, config: OptimizerConfig) -> None:
        """Forget a slot's moments and count of steps; its parameters are zero when it next steps."""
        self._begins_anew.add(slot)
        self._clipping[slot] = config.gradient_clipping
        self._groups[slot].update(
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def go_on(self, slot: int) -> None:
        """Keep what a slot holds, after :meth:`begin_anew`: it was put there."""
        self._begins_anew.discard(slot)

    def set_rate(self, slot: int, rate: float) -> None:
        """Learning rate of a slot's next step."""
        self._groups[slot]["lr"] = rate

    def ask(self, slots: Collection[int]) -> None:
        """Which slots the next call of :meth:`step` steps; the others stay as they are."""
        self._asked = frozenset(slots)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step the slots that are asked to."""
        held = []
        for group in self.param_groups:
            slot, parameters = group["slot"], group["params"]
            if parameters and slot in self._begins_anew:
                self._begins_anew.discard(slot)
                for parameter in parameters:
                    parameter.zero_()
                    self.state.pop(parameter, None)
            if slot in self._asked:
                clip(
                    parameters,
                    self._clipping[slot],
                    n_weights=self._n_weights[slot],
                    total=self._total,
                )
                continue
            for parameter in parameters:
                held.append((parameter, parameter.grad))
                parameter.grad = None
        super().step()
        for parameter, grad in held:
            parameter.grad = grad
