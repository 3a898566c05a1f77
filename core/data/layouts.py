"""How the rows of a forward pass lie in its input: laid end to end, or padded to the longest.

What a network reads goes to its device, and nothing waits for that. Labels stay on the host: which tokens count
decides shapes, and to ask the device for a shape is to wait for everything that it was given before.

Shapes: B rows, T tokens of the longest, P tokens of all rows, N counted tokens, D width of what is read.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.data.batches import collate
from core.data.tokens import TokenRow
from core.losses import IGNORED
from core.losses.alignment import sent


class Layout(Protocol):
    """Rows as a network reads them, and its outputs row by row.

    Attributes:
        inputs: What the network is called with.
        labels_BT: Int64, padded; ``-100`` on prompt and padding. On the host.
        predicting: Which positions predict a counted token, for transformers' ``logits_to_keep``.
    """

    inputs: dict[str, Tensor]
    labels_BT: Tensor
    predicting: Tensor

    def positions_of(self, rows: Sequence[TokenRow]) -> int:
        """Positions of the input that some of the rows take."""
        ...

    def padded(self, states: Tensor) -> Tensor:
        """States of each input position as ``(B, T, D)``; what stands on padding means nothing."""
        ...


class Padded:
    """Rows below each other, padded on the right: for every model. ``predicting`` is bool ``(B, T)``."""

    def __init__(self, rows: Sequence[TokenRow], device: torch.device) -> None:
        """Lay ``rows``."""
        batch = collate(rows, torch.device("cpu"))
        self.inputs = {
            "input_ids": sent(batch.ids, device),
            "attention_mask": sent(batch.mask, device),
        }
        self.labels_BT = batch.labels
        self.predicting = sent(
            torch.nn.functional.pad(batch.labels[:, 1:] != IGNORED, (0, 1)), device
        )

    def positions_of(self, rows: Sequence[TokenRow]) -> int:
        """As many for each row."""
        return len(rows) * self.labels_BT.shape[1]

    def padded(self, states: Tensor) -> Tensor:
        """They are."""
        return states


class EndToEnd:
    """Rows one after the other, as one row without padding. ``predicting`` is int64 ``(N,)``.

    A network reads it in one go; only attention must know where a row ends:
    :func:`core.model.attention.rows_attention`.
    """

    def __init__(self, rows: Sequence[TokenRow], device: torch.device) -> None:
        """Lay ``rows``."""
        lengths = [len(row.ids) for row in rows]
        self.n_rows, self.longest = len(rows), max(lengths)
        starts = torch.tensor([0, *lengths]).cumsum(0)
        places = torch.arange(self.longest)
        inside_BT = places < torch.tensor(lengths).unsqueeze(-1)
        tokens_BT = starts[:-1].unsqueeze(-1) + places
        self.padding_index = sent(torch.where(inside_BT, tokens_BT, 0).flatten(), device)
        """For each place of a padded layout the token that stands there; the first one on padding."""
        self.token_index = sent(inside_BT.flatten().nonzero().squeeze(-1), device)
        """For each token its place in a padded layout."""
        ids = torch.tensor([token for row in rows for token in row.ids])
        positions = places.expand(self.n_rows, -1)[inside_BT]
        labels_BT = torch.full(inside_BT.shape, IGNORED)
        labels_BT[inside_BT] = ids
        context = torch.tensor([row.n_context for row in rows]).unsqueeze(-1)
        labels_BT[places < context] = IGNORED
        predicting = (labels_BT[:, 1:] != IGNORED).nonzero()
        self.predicting = sent(starts[predicting[:, 0]] + predicting[:, 1], device)
        self.inputs = {
            "input_ids": sent(ids.unsqueeze(0), device),
            "position_ids": sent(positions.unsqueeze(0), device),
        }
        self.labels_BT = labels_BT
        self.kept: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        """What attention works out of it once, for all layers."""

    def positions_of(self, rows: Sequence[TokenRow]) -> int:
        """Their tokens."""
        return sum(len(row.ids) for row in rows)

    def padded(self, states: Tensor) -> Tensor:
        """From ``(1, P, D)``; the first token's states stand on padding."""
        found = states[0].index_select(0, self.padding_index)
        return found.view(self.n_rows, self.longest, -1)
