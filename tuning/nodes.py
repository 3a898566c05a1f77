"""Door to ray: the machines of a cluster, and which of them are about to be taken away."""

import ray

from tuning.failures import Machines


def machines() -> Machines:
    """Those that live now."""
    living = frozenset(str(n["NodeID"]) for n in ray.nodes() if n["Alive"])
    return Machines(living=living, leaving=leaving_nodes())


def leaving_nodes() -> frozenset[str]:
    """Nodes that are drained, by Ray's autoscaler, at SIGTERM of the node, or by :mod:`tuning.cluster.spot`."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())
