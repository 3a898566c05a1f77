"""Dropout of what an adapter reads, which is the same again for the same pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core.seeding import derive_seed


class InputDropout:
    """Drops inputs of the layers of one adapter, within :meth:`during` only.

    What is dropped follows from seed, pass and layer: a trial can be repeated, and a block that is computed again
    for its gradient drops the same.
    """

    def __init__(self, share: float, *, seed: int) -> None:
        """Drop each input with probability ``share``, in ``[0, 1)``."""
        self._share, self._seed = share, seed
        self._pass: tuple[int, ...] | None = None

    @contextmanager
    def during(self, *number: int) -> Iterator[None]:
        """Within the context inputs are dropped as they are in the pass of that number."""
        before, self._pass = self._pass, number
        try:
            yield
        finally:
            self._pass = before

    def __call__(self, x: Tensor, layer: str) -> Tensor:
        """``x``, or ``x`` with dropped entries at 0 and the others over ``1 - share``; the mean stays the same."""
        if self._pass is None or self._share == 0.0:
            return x
        generator = torch.Generator(x.device)
        generator.manual_seed(derive_seed(self._seed, "dropout", layer, *self._pass))
        kept = 1.0 - self._share
        mask = torch.empty_like(x, requires_grad=False).bernoulli_(kept, generator=generator)
        return (x * mask).mul_(1.0 / kept)
