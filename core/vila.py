"""Fisher information of a low-rank adapter's own factors (VILA): importance without gradients of W.

Shapes: W is ``(O, I)``, outputs by inputs; r the rank; A ``(r, I)``, B ``(O, r)``.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def centred_fisher(gradients: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, Tensor]:
    r"""Token-weighted variance of batch gradients: diagonal Fisher where the score has a mean.

    .. math::
        F = \max\bigl(0,\; \mathbb{E}[g^2] - \mathbb{E}[g]^2\bigr), \quad
        \mathbb{E}[x] = \frac{\sum_b n_b \, x_b}{\sum_b n_b}, \quad g_b = \nabla \mathcal{L}_b

    where :math:`\mathcal{L}_b` is the mean cross-entropy over the :math:`n_b` counted tokens of batch
    ``b``. Fisher information is the variance of the score; its mean is zero over the data that the
    model was fitted to, but not over a forget set, so the mean is taken off here. What is common to
    all batches counts nothing: 0 means that every batch pulls an entry alike, not that none does.

    Args:
        gradients: For each batch, parameter name to gradient of the batch's mean loss (any shape, any
            float dtype; a name that a batch leaves out has gradient 0 there) and the number of
            counted tokens.

    Returns:
        Parameter name to float32 tensor of the parameter's shape, not negative, nats squared per unit
        of weight squared.

    Raises:
        ValueError: If there are fewer than two batches (the variance of one is 0 everywhere), or a
            batch counts no token.

    References:
        Kim et al., "Improving Fisher Information Estimation and Efficiency for LoRA-based LLM
        Unlearning", COLM 2025, and its ``TOFU/vila.py``. Deviations: both moments are accumulated in
        float64, because their difference loses the digits of float32; one pass over the batches
        instead of ten, which repeat the same batches and give the same moments.
    """
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    n_batches = n_tokens = 0
    for named_gradients, count in gradients:
        if count < 1:
            raise ValueError(f"each batch must count at least one token, got {count}")
        n_batches += 1
        n_tokens += count
        for name, gradient in named_gradients.items():
            if name not in sums:
                sums[name] = torch.zeros_like(gradient, dtype=torch.float64)
                squares[name] = torch.zeros_like(sums[name])
            wide = gradient.double()
            sums[name].add_(wide, alpha=count)
            squares[name].addcmul_(wide, wide, value=count)
    if n_batches < 2:
        raise ValueError(f"a variance over batches needs at least two of them, got {n_batches}")
    return {
        name: (squares[name] / n_tokens - (total / n_tokens).square()).clamp_(min=0.0).float()
        for name, total in sums.items()
    }


def importance_map(fisher_b: Tensor, fisher_a: Tensor) -> Tensor:
    r"""Importance of W's entries, put together from the Fisher information of B and of A.

    .. math::
        M = F_B F_A, \quad M_{ij} = \sum_k (F_B)_{ik} (F_A)_{kj}

    An entry counts where its output row matters to B and its input column to A through the same
    direction ``k`` of the adapter. M stands where the Fisher information of W stands in FILA:
    :func:`core.fila.relative_importance` takes the forget and the retain map.

    Args:
        fisher_b: Float ``(O, r)``, not negative.
        fisher_a: Float ``(r, I)``, not negative.

    Returns:
        Float32 ``(O, I)``, not negative.

    Raises:
        ValueError: If the ranks disagree.

    References:
        Kim et al., COLM 2025, ``TOFU/forget.py``. Deviation: the reference divides each map by its number
        of tokens, which each Fisher has been divided by already; forget and retain maps are then compared
        through an absolute floor of another size. Multiply maps and floor to repeat it.
    """
    if fisher_b.ndim != 2 or fisher_a.ndim != 2 or fisher_b.shape[1] != len(fisher_a):
        raise ValueError(
            "Fisher of B (O, r) and of A (r, I) must have one rank, "
            f"got {tuple(fisher_b.shape)} and {tuple(fisher_a.shape)}"
        )
    return fisher_b.float() @ fisher_a.float()
