"""Diagonal Fisher information from gradients."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def diagonal_fisher(
    gradients: Iterable[tuple[Mapping[str, Tensor], int]],
) -> dict[str, Tensor]:
    r"""Token-weighted mean of squared batch gradients: the empirical diagonal Fisher information.

    .. math::
        F = \frac{1}{\sum_b n_b} \sum_b n_b \, (\nabla_W \mathcal{L}_b)^2

    where :math:`\mathcal{L}_b` is the mean cross-entropy over the :math:`n_b` counted tokens of batch
    ``b``. With one row a batch this is the per-sequence empirical Fisher (up to the weighting by
    length). With more rows the *mean* gradient is squared, which for near-independent rows is smaller
    by about the number of rows; estimates of different batch sizes are not comparable.

    Args:
        gradients: For each batch, parameter name to gradient of the batch's mean loss (any shape, any
            float dtype) and the number of counted tokens.

    Returns:
        Parameter name to float32 tensor of the parameter's shape, not negative, nats squared per unit
        of weight squared. Accumulated in float32 whatever the gradients' dtype.

    Raises:
        ValueError: If there is no batch, or a batch counts no token.

    References:
        Cha et al., ICLR 2025, ``measure_importance.py``, which accumulates in bfloat16 (a bias of
        several per cent after a few hundred batches); this does not.
    """
    totals: dict[str, Tensor] = {}
    n_tokens = 0
    for named_gradients, count in gradients:
        if count < 1:
            raise ValueError(f"each batch must count at least one token, got {count}")
        n_tokens += count
        for name, gradient in named_gradients.items():
            if name not in totals:
                totals[name] = torch.zeros_like(gradient, dtype=torch.float32)
            squared = gradient.float()
            totals[name].addcmul_(squared, squared, value=float(count))
    if n_tokens == 0:
        raise ValueError("Fisher information needs at least one batch, got none")
    return {name: total.div_(n_tokens) for name, total in totals.items()}


def layer_groups(sizes: Mapping[str, int], *, at_most: int) -> list[list[str]]:
    """Layers in groups that are measured at a time, in their order.

    Args:
        sizes: Layer name to the number of its weights.
        at_most: Weights of a group. A layer of more than that is a group alone.

    Returns:
        Names of each group; every layer is in one.
    """
    groups: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not groups or filled + size > at_most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups
