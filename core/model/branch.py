"""What greedy decoding is asked for: rows that go on from somewhere within sequences that were read.

Shapes: R rows decoded together, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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

    greedy: list[list[int]]

    def decoded(self, branches: Sequence[Branch], stop_ids: Collection[int]) -> list[list[int]]:
        """Tokens of each branch up to its number or a stop."""
        ...

    def forced(
        self, branches: Sequence[Branch], following: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Logits ``(R, V)`` after each of the tokens that follow, one of each branch at a time."""
        ...


def padded(sequences: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
    """Sequences filled up with zeros on the right, where a causal model does not look."""
    return [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
