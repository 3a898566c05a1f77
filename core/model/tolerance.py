"""When two ways of computing logits give the same, up to the rounding of the model's own arithmetic.

Shapes: N predictions, V vocabulary.
"""

import torch
from torch import Tensor

_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_OF_LOW_PRECISION = 0.2  # ordinary tokens differ by some per cent, another context by all


def agree(found_NV: Tensor, wanted_NV: Tensor) -> bool:
    """Whether every prediction is as near to the wanted one as its type computes."""
    found, wanted = found_NV.float(), wanted_NV.float()
    distance_N = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    return float(distance_N.max()) < _TOLERANCE.get(wanted_NV.dtype, _TOLERANCE_OF_LOW_PRECISION)
