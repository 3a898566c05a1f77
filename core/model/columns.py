"""Decoding by keys and values of tokens, rows of any length together; a door to transformers.

Every row of a batch ends at the last column of the cache and has its padding on the left. So one new column
serves all rows, the distance of two columns is the distance of their tokens (which is what sliding and local
attention windows measure), and positions are passed explicitly (which learned and rotary positions need).

Shapes: S sequences, R rows decoded together, H heads, C columns, D dimensions of a head, V vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from core.model.branch import Branch, padded

PREFILL_TOKENS = 4096
"""Tokens of one forward pass over prompts: bounds the memory of its logits."""


@torch.no_grad()
def column_bytes(network: nn.Module) -> int:
    """Bytes of the keys and values of one token, over all layers, as a pass over one token leaves them.

    For ordinary attention: layers x key-value heads x dimensions of a head x 2 x bytes of a number.
    """
    cache = DynamicCache()
    ids = torch.zeros((1, 1), dtype=torch.int64, device=_device(network))
    network(input_ids=ids, past_key_values=cache, use_cache=True)
    return sum(keys.nbytes + values.nbytes for keys, values, _ in cache)


class Columns:
    """Sequences that were read once, with the keys and values of all their tokens.

    Attributes:
        greedy: For each sequence, the greedy token after each of its prefixes.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, sequences: Sequence[Sequence[int]]) -> None:
        """Read them."""
        longest = max(map(len, sequences))
        size = max(1, PREFILL_TOKENS // longest)
        self._network = network
        self.greedy: list[list[int]] = []
        parts: list[list[tuple[Tensor, Tensor]]] = []
        for start in range(0, len(sequences), size):
            chunk = sequences[start : start + size]
            columns = max(map(len, chunk))
            ids = torch.tensor(padded(chunk, columns), device=_device(network))
            cache = DynamicCache()  # keeps all columns, also of layers with a window
            logits = network(
                input_ids=ids,
                position_ids=torch.arange(columns, device=ids.device).expand_as(ids),
                past_key_values=cache,
                use_cache=True,
            ).logits
            choices = logits.argmax(dim=-1).tolist()
            self.greedy += [row[: len(s)] for row, s in zip(choices, chunk, strict=True)]
            padding = (0, 0, 0, longest - columns)
            parts.append([(pad(keys, padding), pad(values, padding)) for keys, values, _ in cache])
        self._layers = [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
            for layer in zip(*parts, strict=True)
        ]

    @torch.no_grad()
    def decoded(self, branches: Sequence[Branch], stop_ids: Collection[int]) -> list[list[int]]:
        """Tokens of each branch up to its number or a stop; rows leave the batch as they end."""
        found: list[list[int]] = [[] for _ in branches]
        going = list(range(len(branches)))
        tokens = [branch.token for branch in branches]
        rows: _Rows | None = None
        while True:
            staying = []
            for place, (branch, token) in enumerate(zip(going, tokens, strict=True)):
                if token not in stop_ids:
                    found[branch].append(token)
                    if len(found[branch]) < branches[branch].n:
                        staying.append(place)
            if not staying:
                return found
            ended = len(staying) < len(going)
            going = [going[place] for place in staying]
            room = max(branches[branch].n - len(found[branch]) for branch in going)
            if rows is None:
                rows = self._rows([branches[branch] for branch in going], room=room)
            elif ended:
                rows = rows.kept(staying, room=room)
            logits_RV = rows.step([tokens[place] for place in staying])
            tokens = logits_RV.argmax(dim=-1).tolist()

    @torch.no_grad()
    def forced(
        self, branches: Sequence[Branch], following: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Logits ``(R, V)`` after each of the tokens that follow, one of each branch at a time."""
        rows = self._rows(branches, room=len(following))
        return [rows.step(tokens) for tokens in following]

    def _rows(self, branches: Sequence[Branch], *, room: int) -> "_Rows":
        """Rows at their branches, aligned on the right."""
        device = _device(self._network)
        lengths = [branch.length for branch in branches]
        rows_R = torch.tensor([branch.row for branch in branches], device=device)
        longest = max(lengths)
        shifts_R = longest - torch.tensor(lengths, device=device)
        columns_RC = (torch.arange(longest, device=device) - shifts_R[:, None]).clamp_min(0)

        def aligned(states_SHCD: Tensor) -> Tensor:
            return states_SHCD[rows_R[:, None], :, columns_RC].transpose(1, 2)

        windows = [_Window(aligned(k), aligned(v), room=room) for k, v in self._layers]
        return _Rows(self._network, windows, lengths)


class _Window(CacheLayerMixin):
    """Keys and values of one layer in memory that is taken once: DynamicCache copies all of them at each step."""

    is_sliding = False  # windows are left to the mask, which knows the columns

    def __init__(self, keys_RHCD: Tensor, values_RHCD: Tensor, *, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._filled = keys_RHCD.shape[2]
        self._keys = _with_room(keys_RHCD, room)
        self._values = _with_room(values_RHCD, room)
        self.is_initialized = True

    def kept(self, rows: Tensor, *, columns: int, room: int) -> "_Window":
        """Some of the rows, with the last ``columns`` only."""
        span = slice(self._filled - columns, self._filled)
        return _Window(self._keys[:, :, span][rows], self._values[:, :, span][rows], room=room)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns."""
        end = self._filled + key_states.shape[2]
        self._keys[:, :, self._filled : end] = key_states
        self._values[:, :, self._filled : end] = value_states
        self._filled = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns with the new ones, and the first of them."""
        return self._filled + query_length, 0

    def get_seq_length(self) -> int:
        """Columns."""
        return self._filled

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class _Rows:
    """Rows that are decoded together."""

    def __init__(self, network: nn.Module, windows: list[_Window], lengths: list[int]) -> None:
        self._network, self._windows, self._lengths = network, windows, lengths

    def kept(self, rows: Sequence[int], *, room: int) -> "_Rows":
        """Some of the rows, without the columns that only others used."""
        lengths = [self._lengths[row] for row in rows]
        index = torch.tensor(rows, device=_device(self._network))
        windows = [w.kept(index, columns=max(lengths), room=room) for w in self._windows]
        return _Rows(self._network, windows, lengths)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each row; logits ``(R, V)`` of what follows."""
        device = _device(self._network)
        positions_R1 = torch.tensor(self._lengths, device=device).unsqueeze(1)
        self._lengths = [length + 1 for length in self._lengths]
        columns = self._windows[0].get_seq_length() + 1
        mask_RC = torch.arange(columns, device=device) >= columns - 1 - positions_R1
        logits: Tensor = self._network(
            input_ids=torch.tensor(tokens, device=device).unsqueeze(1),
            attention_mask=mask_RC,
            position_ids=positions_R1,
            past_key_values=Cache(layers=[*self._windows]),
            use_cache=True,
        ).logits
        return logits[:, -1]


def _with_room(states_RHCD: Tensor, room: int) -> Tensor:
    rows, heads, columns, dimensions = states_RHCD.shape
    buffer = states_RHCD.new_empty(rows, heads, columns + room, dimensions)
    buffer[:, :, :columns] = states_RHCD
    return buffer


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
