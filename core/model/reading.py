"""A network reads rows, as closely packed as it can, and gives what counts of its logits.

Shapes: B rows, T tokens of the longest, N counted tokens, V vocabulary, D width of the model.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.data.layouts import EndToEnd, Layout, Padded
from core.data.tokens import TokenRow
from core.model.attention import attending_by_row
from core.model.layers import takes, vocabulary_size
from core.model.tolerance import agree

_TRIES = 3

Call = Callable[..., Any]
"""A network, or what is wrapped around one, called with transformers' arguments."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a network says of some rows.

    Attributes:
        layout: How they lay.
        logits_NV: Of the predictions that count, row by row.
        blocks: Output of the embedding and of each block as the network gave them, where asked for.
    """

    layout: Layout
    logits_NV: Tensor
    blocks: Sequence[Tensor] = ()


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How rows are given to a network.

    Attributes:
        end_to_end: Whether they lie one after the other; padded otherwise.
    """

    end_to_end: bool = False

    def lay(self, rows: Sequence[TokenRow], device: torch.device) -> Layout:
        """Rows, in their order, as the network will read them."""
        return EndToEnd(rows, device) if self.end_to_end else Padded(rows, device)

    def read(
        self, call: Call, network: nn.Module, layout: Layout, *, with_blocks: bool = False
    ) -> Read:
        """One forward pass.

        Args:
            call: Runs the network: itself, or an engine around it.
            network: The network.
            layout: What :meth:`lay` gave.
            with_blocks: Whether the outputs of all blocks are kept.
        """
        keeps = {"logits_to_keep": layout.predicting} if takes(network, "logits_to_keep") else {}
        with attending_by_row(network, layout):
            output = call(
                **layout.inputs, **keeps, use_cache=False, output_hidden_states=with_blocks
            )
        logits = output.logits
        if not keeps:
            logits = logits[0] if isinstance(layout, EndToEnd) else logits
            logits = logits[layout.predicting]
        return Read(
            layout=layout,
            logits_NV=logits.flatten(0, -2),
            blocks=output.hidden_states if with_blocks else (),
        )


PADDED = Reader()
"""For every model."""


def reader_of(network: nn.Module, device: torch.device) -> Reader:
    """The closest reader that a network can have: rows end to end, if its logits are the same then.

    They are where nothing but attention looks across tokens, and attention goes by transformers' interface.
    Convolutions, recurrent states and attention of a model's own are not told where a row ends: there rows
    are padded. It is tried on short rows.
    """
    if not may_read_end_to_end(network):
        return PADDED
    # a model's own code may raise anything, given something else than usual
    with suppress(Exception), torch.no_grad():
        for rows in _tried_rows(vocabulary_size(network)):
            wanted, found = (
                reader.read(network, network, reader.lay(rows, device)).logits_NV
                for reader in (PADDED, Reader(end_to_end=True))
            )
            if agree(found, wanted):
                return Reader(end_to_end=True)
    return PADDED


def may_read_end_to_end(network: nn.Module) -> bool:
    """Whether a model's attention goes by transformers' interface; without that it cannot be told of rows."""
    return bool(getattr(network, "_supports_attention_backend", False))


def _tried_rows(vocabulary: int) -> Iterator[tuple[TokenRow, TokenRow]]:
    """Two rows of tokens from all over the vocabulary: the first few are often special, and unlike all others."""
    for i in range(_TRIES):
        draws = random.Random(i)  # noqa: S311
        ids = [draws.randrange(vocabulary) for _ in range(11)]
        yield TokenRow(tuple(ids[:7]), n_context=1), TokenRow(tuple(ids[7:]), n_context=0)
