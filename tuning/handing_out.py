"""Door to ray: what one node prepared goes to the nodes that have not seen its cache.

Files are read from a small actor on the node that made them, piece by piece, when a rank starts elsewhere and
lacks them. Where nodes share the cache folder there is nothing to do.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.store.durable import commit
from core.store.locks import one_at_a_time
from core.store.place import cache_root

_PIECE_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class PreparedFiles:
    """Files of the cache that a preparation made or used.

    Attributes:
        node: Ray's name of the node that has them.
        root: Its cache folder.
        names: Of the files, below it.
    """

    node: str
    root: Path
    names: tuple[str, ...]

    @classmethod
    def here(cls, names: Iterable[str]) -> "PreparedFiles":
        """Files of this node's cache."""
        node = ray.get_runtime_context().get_node_id()
        return cls(node=node, root=cache_root(), names=tuple(sorted(set(names))))


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """Where a rank gets the prepared files that its node lacks.

    Attributes:
        shelf: Name of the actor that reads them.
        names: Of the files, below the cache.
    """

    shelf: str
    names: tuple[str, ...]

    def fetch(self) -> list[str]:
        """Copy into this node's cache what it lacks; returns the names of these files."""
        lacking = [name for name in self.names if not (cache_root() / name).exists()]
        for name in lacking:
            path = cache_root() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(path):
                if not path.exists():  # another rank of this node may have been first
                    commit(path, partial(self._copy, name))
        return lacking

    def _copy(self, name: str, target: Path) -> None:
        shelf: Any = ray.get_actor(self.shelf)
        with target.open("wb") as file:
            while piece := ray.get(shelf.read.remote(name, file.tell())):
                file.write(piece)


class Shelf:
    """Reads the prepared files, on the node that has them."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        """Read these files below ``root``, and no others."""
        self._root, self._names = root, frozenset(names)

    def read(self, name: str, begin: int) -> bytes:
        """A piece of a file; empty at its end."""
        if name not in self._names:
            raise ValueError(f"{name} was not prepared")
        with (self._root / name).open("rb") as file:
            file.seek(begin)
            return file.read(_PIECE_BYTES)


def hand_out(prepared: PreparedFiles) -> tuple[HandedOut, Any]:
    """Offer prepared files to all nodes, as long as the returned handle lives."""
    name = f"prepared-{uuid.uuid4().hex}"
    placed = NodeAffinitySchedulingStrategy(prepared.node, soft=False)
    shelf = (
        ray.remote(Shelf)
        .options(name=name, num_cpus=0, scheduling_strategy=placed)
        .remote(prepared.root, prepared.names)
    )
    return HandedOut(shelf=name, names=prepared.names), shelf
