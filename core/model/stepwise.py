"""Decoding for models that remember in another way than by keys and values of tokens; a door to transformers.

Recurrent and convolutional states cannot be taken apart by token, so a branch is read anew, and only rows of
one length are read together: then nothing is padding. The states are kept by the cache that transformers makes for
the model; where that does not give what one pass over the whole row gives, the whole row is read for each token.

Shapes: R rows decoded together, T tokens, V vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from core.model.branch import Branch, padded
from core.model.layers import takes

TOKENS_AT_ONCE = 4096
"""Tokens of one forward pass over rows: bounds the memory of its logits."""


class Stepwise:
    """Sequences that were read once, and are read again up to where a branch leaves them.

    Attributes:
        greedy: For each sequence, the greedy token after each of its prefixes.
    """

    def __init__(
        self, network: nn.Module, sequences: Sequence[Sequence[int]], *, keeps_states: bool
    ) -> None:
        """Read them; ``keeps_states``: with a cache, instead of the whole row at each step."""
        self._network, self._sequences, self._keeps_states = network, sequences, keeps_states
        size = max(1, TOKENS_AT_ONCE // max(map(len, sequences)))
        chunks = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        self.greedy = [choices for chunk in chunks for choices in self._choices(chunk)]

    @torch.no_grad()
    def _choices(self, chunk: Sequence[Sequence[int]]) -> list[list[int]]:
        ids = torch.tensor(padded(chunk, max(map(len, chunk))), device=_device(self._network))
        chosen = self._network(input_ids=ids, use_cache=False).logits.argmax(dim=-1).tolist()
        return [row[: len(s)] for row, s in zip(chosen, chunk, strict=True)]

    @torch.no_grad()
    def decoded(self, branches: Sequence[Branch], stop_ids: Collection[int]) -> list[list[int]]:
        """Tokens of each branch up to its number or a stop; a row that ended is read on with those of its length."""
        found: list[list[int]] = [[] for _ in branches]
        by_length: dict[int, list[int]] = {}
        for i, branch in enumerate(branches):
            if branch.token not in stop_ids:
                found[i].append(branch.token)
                if branch.n > 1:
                    by_length.setdefault(branch.length, []).append(i)
        for chosen in by_length.values():
            rows = [[*self._sequences[branches[i].row][: branches[i].length]] for i in chosen]
            reading = _Reading(self._network, rows, keeps_states=self._keeps_states)
            going = set(chosen)
            tokens = [branches[i].token for i in chosen]
            while going:
                tokens = reading.step(tokens).argmax(dim=-1).tolist()
                for i, token in zip(chosen, tokens, strict=True):
                    if i in going and token not in stop_ids:
                        found[i].append(token)
                    if token in stop_ids or len(found[i]) == branches[i].n:
                        going.discard(i)
        return found

    @torch.no_grad()
    def forced(
        self, branches: Sequence[Branch], following: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Logits ``(R, V)`` after each of the tokens that follow, of branches of one length."""
        rows = [[*self._sequences[branch.row][: branch.length]] for branch in branches]
        reading = _Reading(self._network, rows, keeps_states=self._keeps_states)
        return [reading.step(tokens) for tokens in following]


class _Reading:
    """Rows of one length that are read on, a token at a time."""

    def __init__(self, network: nn.Module, rows: list[list[int]], *, keeps_states: bool) -> None:
        self._network, self._rows = network, rows
        self._cache = _new_cache(network) if keeps_states else None

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each row; logits ``(R, V)`` of what follows."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        ids = torch.tensor(self._rows, device=_device(self._network))
        if self._cache is None:
            kept: dict[str, Any] = {"use_cache": False}
        else:
            kept = _with(self._network, self._cache)
            self._rows = [[] for _ in tokens]  # they are in the cache from now on
        if takes(self._network, "logits_to_keep"):
            kept["logits_to_keep"] = 1
        return cast(Tensor, self._network(input_ids=ids, **kept).logits)[:, -1]


@torch.no_grad()
def states_bytes(network: nn.Module, *, columns: int) -> int:
    """Bytes that the cache of one row of so many tokens takes."""
    first, second = (_cache_bytes(network, length) for length in (1, 2))
    return first + (columns - 1) * max(0, second - first)


def _cache_bytes(network: nn.Module, length: int) -> int:
    cache = _new_cache(network)
    ids = torch.zeros((1, length), dtype=torch.int64, device=_device(network))
    network(input_ids=ids, **_with(network, cache))
    return sum(_tensor_bytes(value) for layer in cache.layers for value in vars(layer).values())


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def _new_cache(network: nn.Module) -> DynamicCache:
    """A cache with a place for whatever each layer of the model remembers."""
    return DynamicCache(config=cast(Any, network).config)


def _with(network: nn.Module, cache: DynamicCache) -> dict[str, Any]:
    """Mamba's models call it by another name."""
    name = "cache_params" if takes(network, "cache_params") else "past_key_values"
    return {name: cache, "use_cache": True}


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
