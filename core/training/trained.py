"""What is trained in a trial, as the engine and the probes see it: an adapter, or a copy of the model."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

LARGEST_BUCKET = 500_000_000
"""Gradients that an engine sums up at a time, at most: DeepSpeed's default."""

Gather = Callable[[Tensor], Tensor]
"""How to read a trained parameter in full: its float32 value on the CPU, on every rank."""


class Trained(Protocol):
    """Trained weights beside a target model that stays as it was."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained; its parameters that require a gradient are trained."""
        ...

    def reference(self) -> AbstractContextManager[nn.Module]:
        """Within the context the module that it gives is the reference model: the target model."""
        ...

    def tapped(self) -> AbstractContextManager[Mapping[str, list[tuple[Tensor, Tensor]]]]:
        """Within the context each forward pass leaves what the adapter adds, layer by layer."""
        ...

    def dropping(self, *number: int) -> AbstractContextManager[None]:
        """Within the context a forward pass drops what it drops in the training pass of that number."""
        ...

    def scaled(self, factor: float) -> AbstractContextManager[None]:
        """Within the context the trained difference counts ``factor`` times."""
        ...

    def exported(self, gather: Gather) -> dict[str, Tensor]:
        """What is saved, read with ``gather``; every rank must take part."""
        ...

    def save(
        self, folder: Path, tensors: Mapping[str, Tensor], *, base: str, factor: float = 1.0
    ) -> None:
        """Commit what :meth:`exported` gave, with the trained difference scaled by ``factor``."""
        ...

    def initial_rms(self) -> tuple[float, float]:
        """Root mean square of all entries of the initial factors A0 and B0; 0 where there are none."""
        ...

    def unmoved(self, gather: Gather) -> list[str]:
        """Adapted layers that no step has moved, read with ``gather``; every rank must take part."""
        ...

    def detach(self) -> None:
        """Let go of what is trained; the target model is as before."""
        ...


def float32_on_cpu(parameter: Tensor) -> Tensor:
    """A parameter that lies whole on this rank, read in full."""
    return parameter.detach().float().cpu()
