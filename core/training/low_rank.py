"""A saved adapter at a lower rank, for whoever serves adapters of few ranks only."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """Factors of a lower rank.

    Attributes:
        tensors: By the names that they have in the file, float32.
        kept: Share of the squared Frobenius norm of the difference, over all layers.
    """

    tensors: Mapping[str, Tensor]
    kept: float


def best_approximation(tensors: Mapping[str, Tensor], *, rank: int) -> Approximation:
    r"""Of every layer the product of rank ``rank`` that is nearest to its own.

    .. math::
        \min_{\operatorname{rank} M \le r} \lVert B A - M \rVert_F , \qquad M = U_r \Sigma_r V_r^\top

    Computed in float64 on the small side: with ``B = Q R`` and ``A^T = P S`` the singular values of ``B A`` are
    those of ``R S^T``. Both new factors get the root of the singular values. A layer with a side smaller than
    ``rank`` is kept exactly, padded with zeros.

    Args:
        tensors: ``NAME.lora_A.weight`` ``(R, inputs)`` and ``NAME.lora_B.weight`` ``(outputs, R)``.
        rank: r, at least 1.

    References:
        Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
    """
    found: dict[str, Tensor] = {}
    whole = kept = 0.0
    for name in sorted(n.removesuffix(_A) for n in tensors if n.endswith(_A)):
        a, b = tensors[name + _A].double(), tensors[name + _B].double()
        q, r = torch.linalg.qr(b)
        p, s = torch.linalg.qr(a.T)
        u, sigma, v = torch.linalg.svd(r @ s.T, full_matrices=False)
        whole += float(sigma.square().sum())
        kept += float(sigma[:rank].square().sum())
        root = sigma[:rank].sqrt()
        new_a, new_b = a.new_zeros((rank, a.shape[1])), b.new_zeros((len(b), rank))
        new_a[: len(root)] = root[:, None] * (v[:rank] @ p.T)
        new_b[:, : len(root)] = (q @ u[:, :rank]) * root
        found |= {name + _A: new_a.float(), name + _B: new_b.float()}
    return Approximation(tensors=found, kept=kept / whole if whole else 1.0)
