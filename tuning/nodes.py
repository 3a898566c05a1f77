"""Door to ray: the machines of a cluster, and which of them are about to be taken away."""

import ray


def staying_nodes() -> frozenset[str]:
    """Nodes that live, and that nobody drains, as Ray does when a spot machine is announced to end."""
    from ray._private.state import state

    alive = {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}
    return frozenset(alive - set(state.get_draining_nodes()))
