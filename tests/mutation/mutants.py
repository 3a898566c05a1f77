"""Mutated files: a good file and a few mutations of it, all decided by a seed."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from mutation.texts import BYTE_MUTATIONS
from mutation.trees import TREE_MUTATIONS

_NAMES = (*TREE_MUTATIONS, *BYTE_MUTATIONS)
_MOST = (1, 1, 1, 1, 2, 2, 3, 6)
"""How many mutations a mutant has; most have one, which the rules behind the first refusal see."""


@dataclass(frozen=True)
class Step:
    """One mutation.

    Attributes:
        name: Which.
        seed: Of what it chooses.
    """

    name: str
    seed: int


@dataclass(frozen=True)
class Mutant:
    """A mutated file.

    Attributes:
        steps: How it came about.
        content: Its bytes.
    """

    steps: tuple[Step, ...]
    content: bytes

    @property
    def kind(self) -> str:
        """Of its last mutation, which nothing has hidden."""
        return self.steps[-1].name


def mutant(good: bytes, seed: int) -> Mutant:
    """The mutant of a good file that belongs to a seed."""
    rng = random.Random(seed)
    names = rng.choices(_NAMES, k=rng.choice(_MOST))
    names.sort(key=lambda name: name in BYTE_MUTATIONS)  # a tree first, while there is one
    return made(good, [Step(name, rng.getrandbits(32)) for name in names])


def made(good: bytes, steps: Sequence[Step]) -> Mutant:
    """A good file after some mutations."""
    content, tree = good, None
    for step in steps:
        rng = random.Random(step.seed)
        if step.name in BYTE_MUTATIONS:
            content = BYTE_MUTATIONS[step.name](content, rng)
            continue
        tree = tree or copy.deepcopy(yaml.safe_load(good))
        TREE_MUTATIONS[step.name](tree, rng)
        content = written(tree)
    return Mutant(tuple(steps), content)


def written(tree: Any) -> bytes:
    """A tree as YAML, whatever it holds."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # a mutant may be nested more deeply than anything reads
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=False, width=100)
    finally:
        sys.setrecursionlimit(limit)
    return text.encode("utf-8", "surrogatepass")


def smallest(good: bytes, failing: Mutant, fails: Any, *, most: int = 300) -> Mutant:
    """A failing mutant made smaller: mutations, then lines, are left out as long as it fails.

    Args:
        good: The good file.
        failing: The mutant.
        fails: Whether some content fails in the same way.
        most: Trials of it.
    """
    found, left = failing, most
    for step in failing.steps:
        fewer = [s for s in found.steps if s is not step]
        if fewer and fails(made(good, fewer).content):
            found = made(good, fewer)
    lines, size = found.content.split(b"\n"), max(1, found.content.count(b"\n") // 2)
    while size and left > 0:
        at = 0
        while at < len(lines) and left > 0:
            left -= 1
            fewer_lines = lines[:at] + lines[at + size :]
            if fewer_lines and fails(b"\n".join(fewer_lines)):
                lines = fewer_lines
            else:
                at += size
        size //= 2
    return Mutant(found.steps, b"\n".join(lines))
