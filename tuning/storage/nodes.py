"""Door to ray: does every node reach what the run is kept in? Asked before anything is tried."""

import secrets
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError, first_line
from tuning.shared_folder import refuse_unshared
from tuning.storage.keeping import InStorage, Keeper
from tuning.storage.patience import Patience
from tuning.storage.store import StorageError, Store

_TIMEOUT_S = 90.0
_PATIENCE_S = 20.0
_ASKED = "asked"
_PLACE = "nodes-asked"


def refuse_nodes_apart(run_dir: Path, keeper: Keeper) -> None:
    """Refuse a cluster of which a node that runs trials does not reach what the run is kept in.

    Raises:
        UserError: With the node's address, what it was refused, and what to do.
    """
    if isinstance(keeper, InStorage):
        _refuse_unreached(keeper.store)
    else:
        refuse_unshared(run_dir)


def _refuse_unreached(store: Store) -> None:
    """Have each node read, write, list and delete in the storage; what one writes is read here.

    Nodes that an autoscaler adds later are not asked; an attempt that cannot be kept there breaks with the reason.
    """
    place = Store(
        root=store.root, place=store.at(_PLACE).place, patience=Patience(seconds=_PATIENCE_S)
    )
    token = secrets.token_hex(16)
    place.put(_ASKED, token.encode())
    try:
        for node in ray.nodes():
            if not node["Alive"] or not node["Resources"].get("CPU"):
                continue
            problem = _asked(node["NodeID"], place, token)
            if problem is not None:
                raise UserError(
                    f"{store.address}: node {node['NodeManagerAddress']} does not reach the storage: {problem}; each "
                    "node needs the network to it and rights to read, write, list and delete there (credentials in "
                    "its environment, ~/.aws, or its role; a folder mounted under the same path)"
                )
    finally:
        for name in place.names():
            place.delete(name)


def _asked(node: str, place: Store, token: str) -> str | None:
    """What is wrong between a node and the storage, or ``None``."""
    placed = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(_answered).options(num_cpus=0, scheduling_strategy=placed)
    name = f"answer-{node[:12]}"
    try:
        found, names = ray.get(task.remote(place, name), timeout=_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        return f"it does not answer within {_TIMEOUT_S:g} s"
    except ray.exceptions.RayTaskError as err:
        return first_line(err.cause)
    if found != token:
        return "it reads another file there"
    if name not in names:
        return "it does not list what it has written there"
    try:
        answer = place.get(name)
    except StorageError:
        return "what it writes there is not seen here"
    return None if answer.decode() == token else "what it writes there is not seen here"


def _answered(place: Store, name: str) -> tuple[str, list[str]]:
    """Runs on a node: read the question, repeat it, list both, and delete a file of its own."""
    token = place.get(_ASKED)
    place.put(name, token)
    place.put(f"{name}-deleted", token)
    place.delete(f"{name}-deleted")
    return token.decode(), place.names()
