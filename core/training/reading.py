"""One forward pass over the rows of several parts, and what it says of each: here alone training runs a network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from core.data.layouts import Layout
from core.model.attention import attending_by_row
from core.model.reading import Call, Reader
from core.training.checkpointing import checkpointed
from core.training.passes import Forwarded, Part, Wanted

Taken = Mapping[str, list[tuple[Tensor, Tensor]]]
"""Layer name to what the adapter added to it, and its own output, at each pass."""

Dividing = Callable[[Sequence[int]], AbstractContextManager[None]]
"""What a pass runs in, from how many of its positions each part has, in their order."""


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
    call: Call,
    parts: Sequence[Part],
    *,
    module: nn.Module,
    reader: Reader,
    device: torch.device,
    trained: Readable,
    checkpoints: bool,
    dividing: Dividing = undivided,
) -> list[Forwarded]:
    """One pass over the rows of all parts together, and what it says of each part.

    The reference model, where a part wants it, reads that part alone.

    Args:
        call: Runs the model that is trained: the model itself, or an engine around it.
        parts: What is read; the rows of a part lie together, part after part.
        module: The model itself.
        reader: How it reads rows.
        device: Where it lies.
        trained: Gives what the parts want beside logits.
        checkpoints: Whether blocks keep their input only, and compute the rest again for the gradient.
        dividing: What the pass runs in, and blocks that are computed again, told the positions of each part.
    """
    layout = reader.lay([row for part in parts for row in part.rows], device)
    wanted = reduce(Wanted.and_also, (part.wanted for part in parts), Wanted())
    positions = [layout.positions_of(part.rows) for part in parts]

    def looking() -> AbstractContextManager[Taken]:
        nothing: Taken = {}
        return trained.tapped() if wanted.adapter_outputs else nullcontext(nothing)

    @contextmanager
    def again() -> Iterator[None]:
        with attending_by_row(module, layout), dividing(positions), looking():
            yield

    keeping = checkpointed(module, again=again) if checkpoints else nullcontext()
    with dividing(positions), looking() as taken, keeping:
        read = reader.read(call, module, layout, with_blocks=wanted.block is not None)
    logits = read.logits_NV.split([sum(row.n_counted for row in part.rows) for part in parts])
    ends = accumulate((len(part.rows) for part in parts), initial=0)
    blocks: dict[int, Tensor] = {}
    outputs = {
        name: (layout.padded(pairs[-1][0]), layout.padded(pairs[-1][1]))
        for name, pairs in taken.items()
    }
    found = []
    for part, (first, end), logits_NV in zip(parts, pairwise(ends), logits, strict=True):
        at, length = slice(first, end), max(len(row.ids) for row in part.rows)
        found.append(
            Forwarded(
                logits_NV=logits_NV,
                labels_BT=layout.labels_BT[at, :length],
                block_BTD=_block(part.wanted.block, read.blocks, layout, blocks, at, length),
                adapter_outputs={
                    name: (added[at, :length], base[at, :length])
                    for name, (added, base) in outputs.items()
                },
                reference_logits_NV=_reference_logits(part, reader, trained, device),
            )
        )
    return found


def _block(
    wanted: int | None,
    blocks: Sequence[Tensor],
    layout: Layout,
    padded: dict[int, Tensor],
    at: slice,
    length: int,
) -> Tensor | None:
    """Output of a block for some rows; each block is padded once."""
    if wanted is None:
        return None
    if wanted not in padded:
        padded[wanted] = layout.padded(blocks[wanted + 1])
    return padded[wanted][at, :length]


@torch.no_grad()
def _reference_logits(
    part: Part, reader: Reader, trained: Readable, device: torch.device
) -> Tensor | None:
    if not part.wanted.reference_logits:
        return None
    with trained.reference() as network:
        return reader.read(network, network, reader.lay(part.rows, device)).logits_NV
