"""Greedy decoding: answers to prompts, and the continuations of all prefixes of a text.

A model is decoded in the first of three ways that gives what one pass over the whole row gives; it is tried on
short rows. By keys and values of tokens, rows of any length together (:mod:`core.model.columns`). With the states
that the model itself keeps, such as recurrent ones; or without any (:mod:`core.model.stepwise`).
"""

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from core.model.branch import Branch, Known
from core.model.columns import Columns, column_bytes
from core.model.layers import vocabulary_size
from core.model.memory import free_bytes
from core.model.stepwise import TOKENS_AT_ONCE, Stepwise, states_bytes
from core.model.tolerance import agree

Way = Literal["columns", "states", "rows"]
"""How a model is decoded: with keys and values of tokens, with states of its own, or by reading whole rows."""

SHARE_OF_FREE_MEMORY = 0.25
"""What keys and values may take of the free memory where the model lies."""

_WAYS: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()
_TRIES = 3
_TRIED_TOKENS, _TRIED_STEPS = 24, 6
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
        budget = int(SHARE_OF_FREE_MEMORY * free_bytes(next(network.parameters()).device))
    way = way_of(network)
    if way == "rows":
        fitting = TOKENS_AT_ONCE // columns
    elif way == "states":
        fitting = budget // states_bytes(network, columns=columns)
    else:
        fitting = budget // (_COPIES * columns * column_bytes(network))
    return max(1, min(at_most, fitting))


def way_of(network: nn.Module) -> Way:
    """The first way of decoding that agrees with one pass over whole rows; tried once for a network."""
    if network not in _WAYS:
        ways: tuple[Way, ...] = ("columns", "states")
        _WAYS[network] = next((way for way in ways if _is_right(network, way)), "rows")
    return _WAYS[network]


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
        known = _read(network, [prompts[i] for i in chosen], way_of(network))
        branches = [
            Branch(row=row, length=len(prompts[i]), token=known.greedy[row][-1], n=max_new_tokens)
            for row, i in enumerate(chosen)
        ]
        for i, answer in zip(chosen, known.decoded(branches, stop_ids), strict=True):
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
    known = _read(network, [sequence[:-1] for sequence in sequences], way_of(network))
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
            Branch(row=row, length=at, token=known.greedy[row][at - 1], n=len(sequences[row]) - at)
            for at, row in chosen
        ]
        decoded.update(zip(chosen, known.decoded(branches, ()), strict=True))
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


def _read(network: nn.Module, sequences: Sequence[Sequence[int]], way: Way) -> Known:
    if way == "columns":
        return Columns(network, sequences)
    return Stepwise(network, sequences, keeps_states=way == "states")


@torch.no_grad()
def _is_right(network: nn.Module, way: Way) -> bool:
    """Whether rows that are read on in this way have the logits of rows read at once."""
    draws = random.Random(0)  # noqa: S311
    ids = [
        [draws.randrange(vocabulary_size(network)) for _ in range(_TRIED_TOKENS)]
        for _ in range(2 * _TRIES)
    ]
    # a model's own code may raise anything, given something else than usual
    with suppress(Exception):
        return any(
            _reads_on(
                network, way, ids[2 * i : 2 * i + 2], cut=(18, 11) if way == "columns" else (18, 18)
            )
            for i in range(_TRIES)
        )
    return False


def _reads_on(
    network: nn.Module, way: Way, rows: Sequence[Sequence[int]], *, cut: Sequence[int]
) -> bool:
    device = next(network.parameters()).device
    known = _read(network, [row[:length] for row, length in zip(rows, cut, strict=True)], way)
    branches = [
        Branch(row=i, length=length, token=0, n=_TRIED_STEPS) for i, length in enumerate(cut)
    ]
    following = [
        [row[at + j] for row, at in zip(rows, cut, strict=True)] for j in range(_TRIED_STEPS)
    ]
    found = torch.stack(known.forced(branches, following), dim=1)
    for row, at, logits in zip(rows, cut, found, strict=True):
        ids = torch.tensor([row[: at + _TRIED_STEPS]], device=device)
        wanted = network(input_ids=ids, use_cache=False).logits[0, at:]
        if not agree(logits, wanted):
            return False
    return True


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
