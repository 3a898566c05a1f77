"""One forward pass over the rows of several parts, and what it says of each: here alone training runs a network.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.data.batches import collate
from core.model.loading import forward_of
from core.training.checkpointing import checkpointed
from core.training.passes import Forwarded, Part, Wanted

Taken = Mapping[str, list[tuple[Tensor, Tensor]]]
"""Layer name to what the adapter added to it, and its own output, at each pass."""

Dividing = Callable[[Sequence[int]], AbstractContextManager[None]]
"""A context in which a network knows how many positions of a pass each part has, in their order."""


class Readable(Protocol):
    """What is read beside the network's logits: of the adapter, and of the reference model."""

    def reference(self) -> AbstractContextManager[nn.Module]:
        """Within the context the module that it gives is the reference model."""
        ...

    def tapped(self) -> AbstractContextManager[Taken]:
        """Within the context each forward pass leaves what the adapter adds, layer by layer."""
        ...


def undivided(positions: Sequence[int]) -> AbstractContextManager[None]:
    """For a network that computes the same for the rows of all parts."""
    return nullcontext()


def read_parts(
    network: Callable[..., Any],
    parts: Sequence[Part],
    *,
    module: nn.Module,
    device: torch.device,
    trained: Readable,
    checkpoints: bool,
    dividing: Dividing = undivided,
) -> list[Forwarded]:
    """One pass over the rows of all parts together, and what it says of each part.

    The reference model, where a part wants it, reads that part alone.

    Args:
        network: Runs the model that is trained: the model itself, or an engine around it.
        parts: What is read; the rows of a part lie together, part after part.
        module: The model itself.
        device: Where it lies.
        trained: Gives what the parts want beside logits.
        checkpoints: Whether blocks keep their input only, and compute the rest again for the gradient.
        dividing: What the pass runs in, told the positions of each part.
    """
    batch = collate([row for part in parts for row in part.rows], device)
    wanted = reduce(Wanted.and_also, (part.wanted for part in parts), Wanted())
    positions = [len(part.rows) * batch.ids.shape[1] for part in parts]

    def looking() -> AbstractContextManager[Taken]:
        nothing: Taken = {}
        return trained.tapped() if wanted.adapter_outputs else nullcontext(nothing)

    @contextmanager
    def again() -> Iterator[None]:
        with dividing(positions), looking():
            yield

    keeping = checkpointed(module, again=again) if checkpoints else nullcontext()
    with dividing(positions), looking() as taken, keeping:
        output = network(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            use_cache=False,
            output_hidden_states=wanted.block is not None,
        )
    found, start = [], 0
    for part in parts:
        at = slice(start, start + len(part.rows))
        start += len(part.rows)
        length = max(len(row.ids) for row in part.rows)
        block = part.wanted.block
        found.append(
            Forwarded(
                logits_BTV=output.logits[at, :length],
                labels_BT=batch.labels[at, :length],
                block_BTD=None if block is None else output.hidden_states[block + 1][at, :length],
                adapter_outputs={
                    name: (pairs[-1][0][at, :length], pairs[-1][1][at, :length])
                    for name, pairs in taken.items()
                },
                reference_logits_BTV=_reference_logits(part, trained, device),
            )
        )
    return found


@torch.no_grad()
def _reference_logits(part: Part, trained: Readable, device: torch.device) -> Tensor | None:
    if not part.wanted.reference_logits:
        return None
    batch = collate(part.rows, device)
    with trained.reference() as network:
        return forward_of(network)(batch.ids, batch.mask)
