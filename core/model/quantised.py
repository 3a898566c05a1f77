"""Door to bitsandbytes: linear layers that are held in 4 bits, and their weights as numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

BYTES_PER_WEIGHT = 0.5 + (1 + 4 / 256) / 64
"""4 bits, and for each block of 64 a factor of 8 bits, of which 256 share one of 32."""


def keep_codes(network: nn.Module) -> nn.Module:
    """Have quantised layers leave their codes as they are, in a model that was just loaded.

    On CPUs with AVX512-BF16 bitsandbytes lays them out anew at the first pass without a gradient, for good: the
    weights would no longer be those that were loaded, and no gradient could pass.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and is_quantised(module):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return network


def is_quantised(module: nn.Module) -> bool:
    """Whether the weight of a linear layer is held in codes instead of numbers."""
    return not cast(nn.Parameter, module.weight).is_floating_point()


def dequantised(module: nn.Module) -> Tensor:
    """The weight ``(outputs, inputs)`` that a quantised layer computes with, in its precision."""
    from bitsandbytes.functional import dequantize_4bit

    weight = cast(Any, module.weight)
    return cast(Tensor, dequantize_4bit(weight.data, weight.quant_state))


@contextmanager
def differentiable_weight(module: nn.Module) -> Iterator[nn.Parameter]:
    """Within the context a frozen linear layer computes with a weight that a gradient can be taken of.

    Yields:
        The layer's own weight; of a quantised layer its numbers, in the place of the codes.
    """
    weight = cast(nn.Parameter, module.weight)
    if not is_quantised(module):
        weight.requires_grad_(True)
        try:
            yield weight
        finally:
            weight.requires_grad_(False)
        return
    numbers = nn.Parameter(dequantised(module))
    module.forward = partial(F.linear, weight=numbers, bias=cast(Any, module.bias))
    try:
        yield numbers
    finally:
        del module.forward  # the class's own again
