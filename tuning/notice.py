"""Door to ray: a word from the driver to trials that run, that they are to make a checkpoint and end.

A trial's actor is busy between two probes and cannot be called. So the word lies in Ray's own store, and the actor
looks there between steps. Two sweeps on one cluster have a word each.
"""

import secrets
import time
from collections.abc import Collection

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from tuning.nodes import leaving_nodes

_EVERYBODY = "everybody"
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 5.0


class Notice:
    """What the driver says."""

    def __init__(self) -> None:
        """Nothing is said yet."""
        self.key = f"unlearn-tune-notice-{secrets.token_hex(8)}"
        self._said: frozenset[str] = frozenset()
        self._asked = -_ASK_EVERY_S

    def update(self, *, to_everybody: bool) -> None:
        """Say who is to end: everybody, or trials on machines that Ray says are to be taken away."""
        now, said = time.monotonic(), self._said
        if to_everybody:
            said |= {_EVERYBODY}
        elif now - self._asked >= _ASK_EVERY_S:
            said, self._asked = leaving_nodes(), now
        if said != self._said:
            self._said = said
            _internal_kv_put(self.key, "\n".join(sorted(said)))

    def leaving(self) -> frozenset[str]:
        """Machines that were said to be taken away."""
        return self._said - {_EVERYBODY}

    def withdraw(self) -> None:
        """Say nothing any more."""
        _internal_kv_del(self.key)


class Listener:
    """Who looks for the word, where ranks run."""

    def __init__(self, key: str) -> None:
        """Look under the ``key`` of a notice."""
        self._key, self._looked = key, time.monotonic()

    def is_meant(self, nodes: Collection[str]) -> bool:
        """Whether a trial on these machines is to end; looked for once in a second."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        said = _internal_kv_get(self._key)
        named = [] if said is None else said.decode().split("\n")
        return not {_EVERYBODY, *nodes}.isdisjoint(named)
