"""What a loss is computed from: one set of rows under the model being unlearned and the reference model.

Shapes: B rows, T tokens, V vocabulary, D width of the model, O outputs of a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from core.config.method import MethodConfig

Reduction = Literal["token", "sequence"]
"""What a loss averages over; the engine weights each micro-batch by its share of that count."""

Need = Literal[
    "reference_nll",
    "reference_logits",
    "reference_hidden",
    "hidden",
    "residuals",
    "random_labels",
    "adversarial_labels",
]
"""What a loss needs beside logits and labels; the worker provides it."""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """What the adapter adds in one layer.

    Attributes:
        added_BTO: Output of the adapter, with gradient: the layer's output minus the pre-trained one's.
        base_BTO: Output of the pre-trained layer, detached.
        direction_O: Fixed direction of the forget target, root mean square 1.
    """

    added_BTO: Tensor
    base_BTO: Tensor
    direction_O: Tensor


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """A set of rows, and what models say of them; ``None`` for what the loss did not ask for.

    Attributes:
        logits_BTV: From the model being unlearned.
        labels_BT: Int64; ``-100`` on prompt and padding.
        reference_nll_B: Summed cross-entropy of the counted tokens under the reference model, nats.
        reference_logits_BTV: Logits of the reference model.
        hidden_BTD: Output of block ``rmu.layer`` of the model being unlearned.
        reference_hidden_BTD: The same of the reference model.
        control_D: RMU's control vector: a fixed random direction of length ``rmu.steering``.
        residuals: What the adapter adds, layer by layer.
        other_labels_BT: Random or adversarial labels; ``-100`` where ``labels_BT`` has it.
    """

    logits_BTV: Tensor
    labels_BT: Tensor
    reference_nll_B: Tensor | None = None
    reference_logits_BTV: Tensor | None = None
    hidden_BTD: Tensor | None = None
    reference_hidden_BTD: Tensor | None = None
    control_D: Tensor | None = None
    residuals: Sequence[Residual] = ()
    other_labels_BT: Tensor | None = None


def _none(method: MethodConfig) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class ForgetLoss:
    """A forget loss: how it is computed, what it averages over, and what it needs.

    Attributes:
        compute: Of the forget rows, the rows with alternative answers, and the method.
        reduction: What it averages over.
        reads: Which rows it reads; the others are ``None``. The reduction counts the first of them.
        needs: What it needs of each set it reads.
        left_alone: First labelled tokens of each row that a loss on tokens leaves out; the reduction
            counts the others.
    """

    compute: Callable[[Outputs | None, Outputs | None, MethodConfig], Tensor]
    reduction: Reduction
    reads: Literal["forget", "alternative", "both"] = "forget"
    needs: frozenset[Need] = frozenset()
    left_alone: Callable[[MethodConfig], int] = _none


@dataclass(frozen=True, kw_only=True)
class RetainLoss:
    """A retain loss: how it is computed, what it averages over, and what it needs."""

    compute: Callable[[Outputs, MethodConfig], Tensor]
    reduction: Reduction
    needs: frozenset[Need] = frozenset()
