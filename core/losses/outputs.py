"""What a loss is computed from: one set of rows under the model being unlearned, and what it needs beside.

Shapes: B rows, T tokens, V vocabulary, D width of the model, O outputs of a layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from core.config.method import ForgetLossFacts, LossFacts, MethodConfig, Need, Reads, Reduction


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


Given = Tensor | Sequence[Residual]
"""What meets a need; for ``residuals`` one object for each layer.

``reference_nll`` is ``(B,)``, the summed cross-entropy of each row's counted tokens under the reference
model, nats; ``reference_logits`` as the logits; ``hidden`` and ``reference_hidden`` ``(B, T, D)``, the output
of block ``rmu.layer``; ``control`` ``(D,)``, RMU's control vector of length ``rmu.steering``;
``random_labels`` and ``adversarial_labels`` int64 ``(B, T)``, ``-100`` where the labels have it.
"""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """A set of rows, and what models say of them.

    Attributes:
        logits: ``(B, T, V)`` from the model being unlearned, or ``(N, V)``, those of the counted tokens alone.
        labels_BT: Int64; ``-100`` on prompt and padding.
        given: What the loss asked for, by need.
    """

    logits: Tensor
    labels_BT: Tensor
    given: Mapping[Need, Given] = field(default_factory=dict)

    def tensor(self, need: Need) -> Tensor:
        """What meets a need that is met by one tensor; the loss's facts name it."""
        found = self.given.get(need)
        assert isinstance(found, Tensor)
        return found

    @property
    def residuals(self) -> Sequence[Residual]:
        """What the adapter adds, layer by layer; the loss's facts name the need."""
        found = self.given.get("residuals")
        assert found is not None
        assert not isinstance(found, Tensor)
        return found


ForgetCompute = Callable[[Outputs | None, Outputs | None, MethodConfig], Tensor]
"""A forget loss, of the forget rows, the rows with alternative answers, and the method."""

RetainCompute = Callable[[Outputs, MethodConfig], Tensor]
"""A retain loss, of the retain rows and the method."""


def of_forget_rows(compute: Callable[[Outputs, MethodConfig], Tensor]) -> ForgetCompute:
    """A forget loss that reads the forget rows only."""

    def loss(forget: Outputs | None, alternative: Outputs | None, method: MethodConfig) -> Tensor:
        assert forget is not None  # its facts say so
        return compute(forget, method)

    return loss


def of_alternatives(compute: Callable[[Outputs, MethodConfig], Tensor]) -> ForgetCompute:
    """A forget loss that reads the rows with alternative answers only."""

    def loss(forget: Outputs | None, alternative: Outputs | None, method: MethodConfig) -> Tensor:
        assert alternative is not None  # its facts say so
        return compute(alternative, method)

    return loss


def of_both(compute: Callable[[Outputs, Outputs, MethodConfig], Tensor]) -> ForgetCompute:
    """A forget loss that reads the forget rows and those with alternative answers."""

    def loss(forget: Outputs | None, alternative: Outputs | None, method: MethodConfig) -> Tensor:
        assert forget is not None  # its facts say so
        assert alternative is not None
        return compute(forget, alternative, method)

    return loss


@dataclass(frozen=True, kw_only=True)
class ForgetLoss:
    """A forget loss: how it is computed, and its facts."""

    compute: ForgetCompute
    facts: ForgetLossFacts

    @property
    def reduction(self) -> Reduction:
        """What it averages over."""
        return self.facts.reduction

    @property
    def reads(self) -> Reads:
        """Which rows it reads; the others may be ``None``."""
        return self.facts.reads

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs of each set of rows that it reads."""
        return self.facts.needs


@dataclass(frozen=True, kw_only=True)
class RetainLoss:
    """A retain loss: how it is computed, and its facts."""

    compute: RetainCompute
    facts: LossFacts

    @property
    def reduction(self) -> Reduction:
        """What it averages over."""
        return self.facts.reduction

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs of the rows."""
        return self.facts.needs
