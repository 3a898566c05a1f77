"""What a step asks of the engine, and what a forward pass gives: the seam between losses and engine.

Steps say which rows are read and what is computed of the outputs; whoever runs the model (the engine of
one trial, say) reads the parts of a micro-batch together and hands each its own outputs.

Shapes: B rows, T tokens, N counted tokens, V vocabulary, D width of the model, O outputs of a layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from core.data.tokens import TokenRow


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of a forward pass is kept beside the logits.

    Attributes:
        block: Block whose output is kept; none if absent.
        adapter_outputs: Whether what the adapter adds in each layer is kept.
        reference_logits: Whether the reference model reads the rows, too.
    """

    block: int | None = None
    adapter_outputs: bool = False
    reference_logits: bool = False

    def and_also(self, other: "Wanted") -> "Wanted":
        """Both wishes together; of two blocks the first, for a pass gives all of them."""
        return Wanted(
            block=self.block if other.block is None else other.block,
            adapter_outputs=self.adapter_outputs or other.adapter_outputs,
            reference_logits=self.reference_logits or other.reference_logits,
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one role in a micro-batch, and what is wanted of them."""

    rows: Sequence[TokenRow]
    wanted: Wanted = Wanted()


@dataclass(frozen=True, kw_only=True)
class Forwarded:
    """What a forward pass says of the rows of one part; as long as the longest of them.

    Attributes:
        logits_NV: Of the predictions that count, under the model being trained, row by row, with gradient.
        labels_BT: Int64; ``-100`` on prompt and padding.
        block_BTD: Output of the wanted block, with gradient.
        adapter_outputs: Layer name to what the adapter adds, with gradient, and the layer's own output,
            without; both ``(B, T, O)``.
        reference_logits_NV: The same of the reference model, without gradient.
    """

    logits_NV: Tensor
    labels_BT: Tensor
    block_BTD: Tensor | None = None
    adapter_outputs: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    reference_logits_NV: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass is made of.

    Attributes:
        parts: Rows that are read together.
        share: This micro-batch's share of the global loss, from what each part gave: the shares of all
            micro-batches and ranks add up to it.
    """

    parts: Sequence[Part]
    share: Callable[[Sequence[Forwarded]], Tensor]


class Runner(Protocol):
    """Runs the model that is trained: an engine of one trial, or of many that share a base model."""

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step of this rank's micro-batches."""
        ...
