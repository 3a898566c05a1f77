"""One forward pass over the rows of all parts of a micro-batch, and what it says of each part."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from core.model.attention import reading
from core.model.reading import Call, Reader
from core.training.checkpointing import checkpointed
from core.training.passes import Forwarded, Part, Wanted
from core.training.trained import Trained

Taken = Mapping[str, list[tuple[Tensor, Tensor]]]
"""Layer name to what the adapter added to it, and its own output, at each pass."""


def read_parts(
    call: Call,
    network: nn.Module,
    parts: Sequence[Part],
    *,
    reader: Reader,
    trained: Trained,
    checkpoints: bool,
) -> list[Forwarded]:
    """What a pass says of each part; the reference model, where a part wants it, reads that part alone.

    Args:
        call: Runs the network.
        network: The network, with what is trained on it.
        parts: Rows of each role.
        reader: How the network reads rows.
        trained: What is trained.
        checkpoints: Whether blocks keep their inputs only.
    """
    device = next(network.parameters()).device
    rows = [row for part in parts for row in part.rows]
    layout = reader.lay(rows, device)
    wanted = reduce(Wanted.and_also, (part.wanted for part in parts), Wanted())
    kept: AbstractContextManager[None] = nullcontext()
    if checkpoints:

        @contextmanager
        def again() -> Iterator[None]:
            with reading(network, layout), _looking(trained, wanted):
                yield

        kept = checkpointed(network, again=again)
    with _looking(trained, wanted) as taken, kept:
        read = reader.read(call, network, layout, with_blocks=wanted.block is not None)
    block = None if wanted.block is None else layout.padded(read.blocks[wanted.block + 1])
    outputs = {
        name: (layout.padded(pairs[-1][0]), layout.padded(pairs[-1][1]))
        for name, pairs in taken.items()
    }
    row_ends = accumulate((len(part.rows) for part in parts), initial=0)
    logits = read.logits_NV.split([sum(row.n_counted for row in part.rows) for part in parts])
    found = []
    for part, (first, end), logits_NV in zip(parts, pairwise(row_ends), logits, strict=True):
        at, length = slice(first, end), max(len(row.ids) for row in part.rows)
        found.append(
            Forwarded(
                logits_NV=logits_NV,
                labels_BT=layout.labels_BT[at, :length],
                block_BTD=None if block is None else block[at, :length],
                adapter_outputs={
                    name: (added[at, :length], base[at, :length])
                    for name, (added, base) in outputs.items()
                },
                reference_logits_NV=_reference_logits(part, reader, trained, device),
            )
        )
    return found


def _looking(trained: Trained, wanted: Wanted) -> AbstractContextManager[Taken]:
    """Within the context each pass leaves what adapters add, where that is wanted."""
    nothing: Taken = {}
    return trained.tapped() if wanted.adapter_outputs else nullcontext(nothing)


@torch.no_grad()
def _reference_logits(
    part: Part, reader: Reader, trained: Trained, device: torch.device
) -> Tensor | None:
    if not part.wanted.reference_logits:
        return None
    with trained.reference() as network:
        return reader.read(network, network, reader.lay(part.rows, device)).logits_NV
