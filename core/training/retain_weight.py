"""The weight on the retain loss: fixed, or the dual variable of primal-dual unlearning."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from core.config import MethodConfig
from core.config.method import PduConfig
from core.losses import dual_update


class RetainWeight(Protocol):
    """The factor on the retain loss.

    Attributes:
        value: What it is now.
    """

    value: float

    def after_step(self, retain_loss: Callable[[], float]) -> None:
        """Take note of an optimiser step; ``retain_loss`` is the whole batch's, computed if it is called."""
        ...

    def state(self) -> dict[str, float]:
        """What a probe records of it."""
        ...

    def go_on_from(self, state: Mapping[str, float], *, step: int) -> None:
        """Be as after ``step`` steps, when :meth:`state` gave ``state``."""
        ...


class FixedWeight:
    """``method.retain_weight``."""

    def __init__(self, value: float) -> None:
        """Stay at ``value``."""
        self.value = value

    def after_step(self, retain_loss: Callable[[], float]) -> None:
        """Stay."""

    def state(self) -> dict[str, float]:
        """Nothing: the configuration says it."""
        return {}

    def go_on_from(self, state: Mapping[str, float], *, step: int) -> None:
        """Stay."""


class DualVariable:
    """Rises while the retain loss is above its limit, and falls while it is below."""

    def __init__(self, value: float, config: PduConfig) -> None:
        """Begin at ``value``."""
        self.value = value
        self._config, self._n_steps = config, 0

    def after_step(self, retain_loss: Callable[[], float]) -> None:
        """One dual step after the warm-up; a retain loss that is not finite is ignored."""
        self._n_steps += 1
        if self._n_steps <= self._config.warmup_steps:
            return
        loss = retain_loss()
        if math.isfinite(loss):
            config = self._config
            self.value = dual_update(
                self.value, loss, limit=config.retain_limit, step=config.dual_step
            )

    def state(self) -> dict[str, float]:
        """The dual variable."""
        return {"dual_variable": self.value}

    def go_on_from(self, state: Mapping[str, float], *, step: int) -> None:
        """Be as after ``step`` steps: what was is in the dual variable, and the warm-up is counted."""
        self.value, self._n_steps = state["dual_variable"], step


def retain_weight(method: MethodConfig) -> RetainWeight:
    """The weight that a method asks for."""
    if method.forget_facts.sets_retain_weight:
        return DualVariable(method.retain_weight, method.pdu)
    return FixedWeight(method.retain_weight)
