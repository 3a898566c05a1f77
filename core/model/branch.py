"""What greedy decoding is asked for: rows that go on from somewhere within sequences that were read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A row to decode: the first ``length`` tokens of sequence ``row``, then ``token``; ``n`` new ones in all."""

    row: int
    length: int
    token: int
    n: int


class Known(Protocol):
    """Sequences that a network has read.

    Attributes:
        greedy: For each sequence, the greedy token after each of its prefixes.
    """

    greedy: Sequence[Sequence[int]]

    def decoded(self, branches: Sequence[Branch], stop_ids: Collection[int]) -> list[list[int]]:
        """Tokens of each branch up to its number or a stop."""
        ...


def padded(sequences: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
    """Sequences filled up with zeros on the right, where a causal model does not look."""
    return [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
