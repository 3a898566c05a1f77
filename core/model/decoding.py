"""Greedy decoding with a key-value cache; a door to transformers.

Every row of a batch ends at the last column of the cache and has its padding on the left. So one new column
serves all rows, the distance of two columns is the distance of their tokens (which is what sliding and local
attention windows measure), and positions are passed explicitly (which learned and rotary positions need).

Shapes: S sequences, R rows decoded together, H heads, C columns, D dimensions of a head.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from core.model.memory import free_bytes

PREFILL_TOKENS = 4096
"""Tokens of one forward pass over prompts: bounds the memory of its logits."""

SHARE_OF_FREE_MEMORY = 0.25
"""What keys and values may take of the free memory where the model lies."""

_COPIES = 3  # of a row's keys and values: the sequence's, the branch's, and the branch's as rows leave the batch


def rows_at_once(
    network: nn.Module, *, columns: int, at_most: int, budget: int | None = None
) -> int:
    """Rows that can be decoded together within the memory for their keys and values, at least 1.

    Args:
        network: Causal language model of transformers, in evaluation mode.
        columns: Tokens of the longest row, new ones included.
        at_most: Largest answer.
        budget: Bytes for keys and values; a quarter of what is free on the model's device if absent.
    """
    if budget is None:
        budget = int(SHARE_OF_FREE_MEMORY * free_bytes(_device(network)))
    return max(1, min(at_most, budget // (_COPIES * columns * column_bytes(network))))


@torch.no_grad()
def column_bytes(network: nn.Module) -> int:
    """Bytes of the keys and values of one token, over all layers, as a pass over one token leaves them.

    For ordinary attention: layers x key-value heads x dimensions of a head x 2 x bytes of a number.
    """
    cache = DynamicCache()
    ids = torch.zeros((1, 1), dtype=torch.int64, device=_device(network))
    network(input_ids=ids, past_key_values=cache, use_cache=True)
    return sum(keys.nbytes + values.nbytes for keys, values, _ in cache)


def generate(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    batch_size: int,
) -> list[list[int]]:
    """Greedy answers to prompts.

    Args:
        network: Causal language model of transformers, in evaluation mode. Under ZeRO 3 every rank must
            pass the same prompts, since ranks gather weights together.
        prompts: Token ids; lengths may differ.
        max_new_tokens: An answer has at most this many tokens; with the prompt they must fit the model's
            positions.
        stop_ids: Tokens that end an answer and are no part of it.
        batch_size: Rows decoded together. It changes memory and time, not the result, up to the rounding
            of the model's own arithmetic.

    Returns:
        The new tokens for each prompt, in the order of the prompts.

    Raises:
        ValueError: If the network is in training mode, a prompt is empty, or a number is not positive.
    """
    _check(network, prompts, shortest=1, batch_size=batch_size, max_new_tokens=max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), batch_size):
        chosen = by_length[start : start + batch_size]
        known = _prefill(network, [prompts[i] for i in chosen])
        branches = [
            _Branch(row=row, length=len(prompts[i]), token=known.greedy[row][-1], n=max_new_tokens)
            for row, i in enumerate(chosen)
        ]
        for i, answer in zip(chosen, _decode(network, known, branches, stop_ids), strict=True):
            answers[i] = answer
    return answers


def suffix_continuations(
    network: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    min_length: int = 1,
) -> Iterator[list[list[int]]]:
    """For each sequence, the greedy continuation of every prefix up to the sequence's length.

    One forward pass over the sequence gives the greedy token after every prefix. Where it is the true
    one, the continuation is that token and the continuation of the next prefix, so only prefixes with a
    wrong greedy token are decoded, from the cache of that one pass.

    No token ends a continuation, the end of text neither: a sequence that is known by heart is continued
    by itself, whatever tokens it holds, and its value in
    :func:`core.metrics.memorization.extraction_likelihood` depends on no other row.

    Args:
        network: Causal language model of transformers, in evaluation mode. Under ZeRO 3 every rank must
            pass the same sequences, since ranks gather weights together.
        sequences: Token ids, at least 2 each; lengths may differ.
        batch_size: Rows decoded together, and sequences whose cache is kept for them. It changes memory
            and time, not the result, up to the rounding of the model's own arithmetic: where the two
            best logits are closer than that, one pass and step by step may choose differently.
        min_length: Prefixes with a shorter suffix than this are left out: n for ``EL_n``.

    Returns:
        For each sequence of T tokens in turn a list, whose entry ``i - 1`` continues the first ``i``
        tokens by ``T - i``, for ``i`` from 1 to ``T - min_length``.

    Raises:
        ValueError: If the network is in training mode, a sequence has fewer than 2 tokens, or a number is
            not positive.
    """
    _check(network, sequences, shortest=2, batch_size=batch_size, min_length=min_length)
    return (
        continuations
        for start in range(0, len(sequences), batch_size)
        for continuations in _suffixes(
            network, sequences[start : start + batch_size], batch_size, min_length
        )
    )


def _suffixes(
    network: nn.Module, sequences: Sequence[Sequence[int]], batch_size: int, min_length: int
) -> list[list[list[int]]]:
    known = _prefill(network, [sequence[:-1] for sequence in sequences])
    departures = [
        _departures(sequence, greedy, len(sequence) - min_length)
        for sequence, greedy in zip(sequences, known.greedy, strict=True)
    ]
    # Neighbours in length share a batch: little padding, and they end together.
    wanted = sorted(
        {(at, row) for row, ats in enumerate(departures) for at in ats if at < len(sequences[row])}
    )
    decoded: dict[tuple[int, int], list[int]] = {}
    for start in range(0, len(wanted), batch_size):
        chosen = wanted[start : start + batch_size]
        branches = [
            _Branch(row=row, length=at, token=known.greedy[row][at - 1], n=len(sequences[row]) - at)
            for at, row in chosen
        ]
        decoded.update(zip(chosen, _decode(network, known, branches, ()), strict=True))
    return [
        [
            [*sequence[i:at], *decoded.get((at, row), ())]
            for i, at in enumerate(departures[row], start=1)
        ]
        for row, sequence in enumerate(sequences)
    ]


def _departures(sequence: Sequence[int], greedy: Sequence[int], n_prefixes: int) -> list[int]:
    """For each prefix length, the first place from there on where the greedy token is not the true one."""
    at = len(sequence)
    found = []
    for i in range(len(sequence) - 1, 0, -1):
        at = i if greedy[i - 1] != sequence[i] else at
        found.append(at)
    return found[::-1][: max(0, n_prefixes)]


@dataclass(frozen=True, kw_only=True)
class _Known:
    """One forward pass over sequences.

    Attributes:
        greedy: For each sequence, the greedy token after each of its prefixes.
        layers: Keys and values ``(S, H, C, D)`` of each layer; padding on the right.
    """

    greedy: list[list[int]]
    layers: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """A row to decode: the first ``length`` tokens of sequence ``row``, then ``token``; ``n`` new ones in all."""

    row: int
    length: int
    token: int
    n: int


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

    @classmethod
    def of(
        cls, network: nn.Module, known: _Known, branches: Sequence[_Branch], *, room: int
    ) -> "_Rows":
        """Rows at their branches, aligned on the right."""
        device = _device(network)
        lengths = [branch.length for branch in branches]
        rows_R = torch.tensor([branch.row for branch in branches], device=device)
        longest = max(lengths)
        shifts_R = longest - torch.tensor(lengths, device=device)
        columns_RC = (torch.arange(longest, device=device) - shifts_R[:, None]).clamp_min(0)

        def aligned(states_SHCD: Tensor) -> Tensor:
            return states_SHCD[rows_R[:, None], :, columns_RC].transpose(1, 2)

        windows = [_Window(aligned(k), aligned(v), room=room) for k, v in known.layers]
        return cls(network, windows, lengths)

    def kept(self, rows: Sequence[int], *, room: int) -> "_Rows":
        """Some of the rows, without the columns that only others used."""
        lengths = [self._lengths[row] for row in rows]
        index = torch.tensor(rows, device=_device(self._network))
        windows = [w.kept(index, columns=max(lengths), room=room) for w in self._windows]
        return _Rows(self._network, windows, lengths)

    def step(self, tokens: Sequence[int]) -> list[int]:
        """Append a token to each row; the greedy tokens that follow."""
        device = _device(self._network)
        positions_R1 = torch.tensor(self._lengths, device=device).unsqueeze(1)
        self._lengths = [length + 1 for length in self._lengths]
        columns = self._windows[0].get_seq_length() + 1
        mask_RC = torch.arange(columns, device=device) >= columns - 1 - positions_R1
        logits = self._network(
            input_ids=torch.tensor(tokens, device=device).unsqueeze(1),
            attention_mask=mask_RC,
            position_ids=positions_R1,
            past_key_values=Cache(layers=[*self._windows]),
            use_cache=True,
        ).logits
        greedy: list[int] = logits[:, -1].argmax(dim=-1).tolist()
        return greedy


@torch.no_grad()
def _decode(
    network: nn.Module, known: _Known, branches: Sequence[_Branch], stop_ids: Collection[int]
) -> list[list[int]]:
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
            rows = _Rows.of(network, known, [branches[branch] for branch in going], room=room)
        elif ended:
            rows = rows.kept(staying, room=room)
        tokens = rows.step([tokens[place] for place in staying])


@torch.no_grad()
def _prefill(network: nn.Module, sequences: Sequence[Sequence[int]]) -> _Known:
    """Forward pass over sequences, padded on the right: there a causal model does not look."""
    longest = max(map(len, sequences))
    size = max(1, PREFILL_TOKENS // longest)
    greedy: list[list[int]] = []
    parts: list[list[tuple[Tensor, Tensor]]] = []
    for start in range(0, len(sequences), size):
        chunk = sequences[start : start + size]
        columns = max(map(len, chunk))
        ids = torch.tensor(
            [[*s, *[0] * (columns - len(s))] for s in chunk], device=_device(network)
        )
        cache = DynamicCache()  # keeps all columns, also of layers with a window
        logits = network(
            input_ids=ids,
            position_ids=torch.arange(columns, device=ids.device).expand_as(ids),
            past_key_values=cache,
            use_cache=True,
        ).logits
        choices = logits.argmax(dim=-1).tolist()
        greedy += [row[: len(s)] for row, s in zip(choices, chunk, strict=True)]
        padding = (0, 0, 0, longest - columns)
        parts.append([(pad(keys, padding), pad(values, padding)) for keys, values, _ in cache])
    layers = [
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
        for layer in zip(*parts, strict=True)
    ]
    return _Known(greedy=greedy, layers=layers)


def _with_room(states_RHCD: Tensor, room: int) -> Tensor:
    rows, heads, columns, dimensions = states_RHCD.shape
    buffer = states_RHCD.new_empty(rows, heads, columns + room, dimensions)
    buffer[:, :, :columns] = states_RHCD
    return buffer


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _check(
    network: nn.Module, sequences: Sequence[Sequence[int]], *, shortest: int, **numbers: int
) -> None:
    if network.training:
        raise ValueError("greedy decoding needs evaluation mode (no dropout), got training mode")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    for i, sequence in enumerate(sequences):
        if len(sequence) < shortest:
            raise ValueError(
                f"every sequence needs at least {shortest} tokens, got {len(sequence)} in sequence {i}"
            )
