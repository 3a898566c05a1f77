"""Fisher-weighted initialisation of low-rank adapters (FILA), in the form that leaves W alone.

Shapes: W is ``(O, I)``, outputs by inputs; r the rank; A ``(r, I)``, B ``(O, r)``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 16
"""Extra columns of the randomised decomposition; the released code uses none and misses the optimum by up to 23 %."""
POWER_ITERATIONS = 4
"""Subspace iterations of the randomised decomposition."""
EXACT_BELOW = 256
"""Matrices whose smaller side is at most this are decomposed exactly."""


@dataclass(frozen=True, kw_only=True)
class LowRankFactors:
    """``scaling * b @ a`` approximates W; ``residual`` is the rest."""

    a: Tensor
    b: Tensor
    residual: Tensor


def relative_floor(fisher_retain: Tensor, factor: float) -> float:
    """An absolute floor that is ``factor`` times the mean retain Fisher of the matrix.

    An absolute 1e-5, as in the released code, lies far above typical Fisher values of a large model
    and turns the ratio into the forget Fisher alone.
    """
    return factor * float(fisher_retain.float().mean())


def relative_importance(fisher_forget: Tensor, fisher_retain: Tensor, *, floor: float) -> Tensor:
    r"""Elementwise importance for forgetting relative to retaining, :math:`F_f / (\epsilon + F_r)`.

    Args:
        fisher_forget: Float ``(O, I)``, not negative.
        fisher_retain: Float ``(O, I)``, not negative.
        floor: :math:`\epsilon > 0`, absolute; see :func:`relative_floor`.

    Returns:
        Float32 ``(O, I)``, not negative.

    Raises:
        ValueError: If shapes disagree or the floor is not positive.
    """
    if fisher_forget.shape != fisher_retain.shape:
        raise ValueError(
            "forget and retain Fisher must have one shape, "
            f"got {tuple(fisher_forget.shape)} and {tuple(fisher_retain.shape)}"
        )
    if not floor > 0.0:
        raise ValueError(f"floor must be positive, got {floor}")
    return fisher_forget.float() / (floor + fisher_retain.float())


def row_weights(importance: Tensor, *, exponent: float) -> Tensor:
    r"""Weight of each output row, :math:`\rho_i = (\sum_j I_{ij})^\gamma`.

    Args:
        importance: Float ``(O, I)``, or its row sums ``(O,)``.
        exponent: :math:`\gamma \ge 0`; 0.5 is the paper's square root, 0 gives ones (plain SVD).

    Returns:
        Float32 ``(O,)``, positive; a row of zeros gets the smallest positive row's weight (the released
        code divides by almost zero there and blows rounding noise up).

    Raises:
        ValueError: If the exponent is negative or an entry is negative or not finite.
    """
    if exponent < 0.0:
        raise ValueError(f"exponent must not be negative, got {exponent}")
    sums = importance.float()
    if sums.ndim == 2:
        sums = sums.sum(dim=1)
    if not bool(torch.isfinite(sums).all()) or bool((sums < 0).any()):
        raise ValueError("importance must be finite and not negative")
    positive = sums[sums > 0]
    smallest = positive.min() if positive.numel() else torch.ones((), device=sums.device)
    return torch.where(sums > 0, sums, smallest) ** exponent


def normalise_rows(weights: Tensor) -> Tensor:
    """Divide row weights by their geometric mean.

    ``B A`` does not change; the sizes of A and B against each other do. Without it the scale of the
    Fisher ratio acts as a hidden learning rate under Adam.
    """
    return weights / torch.exp(torch.log(weights).mean())


def weighted_low_rank(
    weight: Tensor, row_weights: Tensor, *, rank: int, scaling: float, seed: int = 0
) -> LowRankFactors:
    r"""Best rank-r approximation of W under row weights, as adapter factors.

    .. math::
        \min_{\operatorname{rank}(s B A) \le r} \lVert \operatorname{diag}(\rho) (W - s B A) \rVert_F, \quad
        U S V^\top \approx \operatorname{diag}(\rho) W, \quad
        A = (V \sqrt{S / s})^\top, \quad B = \operatorname{diag}(\rho)^{-1} U \sqrt{S / s}

    Args:
        weight: Float ``(O, I)``; read only.
        row_weights: Float ``(O,)``, positive.
        rank: r, at most the smaller side of W.
        scaling: s = alpha / r > 0; ``s B A`` does not depend on it.
        seed: Seed of the randomised decomposition (oversampled; exact for small matrices).

    Returns:
        Float32 factors sorted by singular value; each singular vector's sign is fixed (its largest
        entry in V is positive), so that equal input gives equal factors.

    Raises:
        ValueError: If the rank does not fit or the weights are not positive.

    References:
        Cha et al., ICLR 2025, equation of FILA. Deviations: oversampled instead of q = r; no 1e-5 in
        the inverse of the row weights; W is not overwritten by the residual.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rank must lie in [1, {min(weight.shape)}] for a {tuple(weight.shape)} matrix, got {rank}"
        )
    if not bool((row_weights > 0).all()):
        raise ValueError("row weights must be positive")
    dense = weight.detach().float()
    rho = row_weights.detach().float().unsqueeze(1)
    u, s, v = _leading_triplets(rho * dense, rank, seed=seed)
    root = (s / scaling).sqrt()
    a = (v * root).T.contiguous()
    b = (u * root / rho).contiguous()
    return LowRankFactors(a=a, b=b, residual=dense - scaling * b @ a)


def _leading_triplets(matrix: Tensor, rank: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    if min(matrix.shape) <= max(EXACT_BELOW, rank + OVERSAMPLING):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.T
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=POWER_ITERATIONS)
    u, s, v = u[:, :rank], s[:rank], v[:, :rank]
    largest = v.abs().argmax(dim=0, keepdim=True)
    signs = torch.sign(v.gather(0, largest)).squeeze(0)
    return u * signs, s, v * signs
