"""Door to ray: a question to every node of a cluster that runs trials."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import first_line
from tuning.fitting import Room

_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a node said.

    Attributes:
        node: Its address.
        found: What the function returned there.
        problem: Why there is no answer, or ``None``.
    """

    node: str
    found: Any = None
    problem: str | None = None


def rooms() -> list[Room]:
    """What each node that runs trials has."""
    return [
        Room(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
        for node in _nodes()
    ]


def ask_every_node(function: Callable[..., Any], *arguments: Any) -> Iterator[Answer]:
    """Call a function on every node that runs trials, at the same time; nodes that come later are not asked."""
    asked = []
    for node in _nodes():
        placed = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task: Any = ray.remote(function).options(num_cpus=0, scheduling_strategy=placed)
        asked.append((node["NodeManagerAddress"], task.remote(*arguments)))
    for address, reference in asked:
        try:
            yield Answer(node=address, found=ray.get(reference, timeout=_TIMEOUT_S))
        except ray.exceptions.GetTimeoutError:
            yield Answer(node=address, problem=f"it does not answer within {_TIMEOUT_S:g} s")
        except ray.exceptions.RayTaskError as err:
            yield Answer(node=address, problem=first_line(err.cause))
        except ray.exceptions.RayError as err:
            yield Answer(node=address, problem=first_line(err))


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
