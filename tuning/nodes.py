"""Door to ray: the machines of a cluster, and which of them are about to be taken away."""

import ray


def staying_nodes() -> frozenset[str]:
    """Nodes that live, and are not about to be taken away."""
    return frozenset(n["NodeID"] for n in ray.nodes() if n["Alive"]) - leaving_nodes()


def leaving_nodes() -> frozenset[str]:
    """Nodes that are drained, as Ray's autoscaler and clouds' notices of the end of a spot machine have it."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())
