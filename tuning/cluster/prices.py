"""What a cluster costs: the price table of its file times the hours of its machines.

The table is ``metadata.price_per_hour`` of a file of Ray's launcher: node type to US dollars for a machine and hour.
Ray does not read it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuning.cluster.problems import nearest, problem
from tuning.config import ResourcesSpec
from tuning.fitting import Room, ranks_on

_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine that a cluster had or has.

    Attributes:
        resources: What Ray counts on it, such as ``{"CPU": 4.0, "GPU": 1.0}``.
        is_head: Whether it is the head.
        is_alive: Whether it is still there.
        seconds: How long it has been there.
        node_type: Name in the file; empty where Ray does not say it.
    """

    resources: Mapping[str, float]
    is_head: bool
    is_alive: bool
    seconds: float
    node_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a cluster has cost, and costs.

    Attributes:
        so_far: US dollars of all machines, those that are gone included.
        per_hour: Of the machines that are there.
        per_hour_at_most: Of as many as the file allows.
        to_come: Until the runs that go on have ended, at ``per_hour``; ``None`` where that is not known.
        unpriced: Machines that are not in the table.
    """

    so_far: float
    per_hour: float
    per_hour_at_most: float
    to_come: float | None
    unpriced: int


def price_table(config: Mapping[str, Any]) -> dict[str, float]:
    """Node type to US dollars for a machine and hour; empty if the file has none."""
    data = config.get("metadata")
    table = data.get("price_per_hour") if isinstance(data, dict) else None
    return {str(k): float(v) for k, v in table.items()} if isinstance(table, dict) else {}


def price_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a file's prices, or kept from being known."""
    data = config.get("metadata")
    table = data.get("price_per_hour") if isinstance(data, dict) else None
    types = config.get("available_node_types")
    if table is None or not isinstance(types, dict):
        return []
    if not isinstance(table, dict):
        rule = "must map node types to US dollars for an hour"
        return [problem("metadata.price_per_hour", rule, table, "write {head: 0.10, ...}")]
    problems = []
    for name, price in table.items():
        key = f"metadata.price_per_hour.{name}"
        if name not in types:
            todo = nearest(str(name), [str(known) for known in types])
            problems.append(problem(key, "must be one of available_node_types", name, todo))
        elif isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
            problems.append(problem(key, "must be a number from 0 on", price, "give the price"))
    problems += [
        problem(
            f"metadata.price_per_hour.{name}", "every node type must have a price", None, "add it"
        )
        for name in types
        if name not in table
    ]
    return problems


def type_of(machine: Machine, config: Mapping[str, Any]) -> str | None:
    """The node type of a machine: what Ray says, the head's, or the first with the same CPUs and GPUs."""
    types: Mapping[str, Any] = config.get("available_node_types") or {}
    if machine.node_type in types:
        return machine.node_type
    if machine.is_head:
        return config.get("head_node_type")
    for name, node_type in types.items():
        resources = node_type.get("resources") or {}
        if name != config.get("head_node_type") and all(
            float(resources.get(kind, 0)) == machine.resources.get(kind, 0.0)
            for kind in ("CPU", "GPU")
        ):
            return str(name)
    return None


def most_per_hour(config: Mapping[str, Any]) -> float:
    """US dollars for an hour with as many workers as the file allows, the dearest first."""
    prices, types = price_table(config), config.get("available_node_types") or {}
    head = config.get("head_node_type")
    total, left = prices.get(str(head), 0.0), int(config.get("max_workers", 0))
    for name in sorted(types, key=lambda name: -prices.get(name, 0.0)):
        if name != head:
            machines = min(left, int(types[name].get("max_workers", left)))
            total, left = total + machines * prices.get(name, 0.0), left - machines
    return total


@dataclass(frozen=True, kw_only=True)
class ForeseenCost:
    """What a sweep will cost, very roughly.

    Attributes:
        low: US dollars if it takes the shortest foreseen time, on the cheapest machines that its trials fit on.
        high: If it takes the longest, with all machines that the file allows, the dearest.
        machines: Of the first kind.
    """

    low: float
    high: float
    machines: int


def foreseen_cost(
    config: Mapping[str, Any],
    resources: ResourcesSpec,
    *,
    workers: int,
    time_s: tuple[float, float],
) -> ForeseenCost | None:
    """What a sweep will cost; ``None`` if the file has no prices, or no machine that a rank fits on.

    Each worker is paid for until its idle timeout has passed after the sweep.

    Args:
        config: The cluster's file.
        resources: What a trial occupies.
        workers: Sets of ranks at the same time.
        time_s: The shortest and the longest foreseen time.
    """
    prices = price_table(config)
    types, head = config.get("available_node_types") or {}, str(config.get("head_node_type"))
    ways = []
    for name, price in prices.items():
        room = types.get(name, {}).get("resources") or {}
        n_ranks = ranks_on(
            Room(cpus=float(room.get("CPU", 0)), gpus=float(room.get("GPU", 0))),
            cpus=resources.cpus_per_rank,
            gpus=resources.n_gpus,
        )
        if name != head and n_ranks:
            machines = math.ceil(workers * resources.ranks_per_trial / n_ranks)
            ways.append((machines * price, machines))
    if not ways:
        return None
    per_hour, machines = min(ways)
    at_head, most = prices.get(head, 0.0), most_per_hour(config)
    idle = float(config.get("idle_timeout_minutes", 0)) / 60
    low, high = (seconds / _SECONDS for seconds in time_s)
    return ForeseenCost(
        low=at_head * low + per_hour * (low + idle),
        high=at_head * high + (most - at_head) * (high + idle),
        machines=machines,
    )


def costs(
    config: Mapping[str, Any], machines: Iterable[Machine], *, seconds_left: float | None
) -> Costs | None:
    """What a cluster has cost and costs; ``None`` if its file has no prices."""
    prices = price_table(config)
    if not prices:
        return None
    so_far = per_hour = 0.0
    unpriced = 0
    for machine in machines:
        price = prices.get(type_of(machine, config) or "")
        if price is None:
            unpriced += 1
            continue
        so_far += price * machine.seconds / _SECONDS
        per_hour += price if machine.is_alive else 0.0
    return Costs(
        so_far=so_far,
        per_hour=per_hour,
        per_hour_at_most=most_per_hour(config),
        to_come=None if seconds_left is None else per_hour * seconds_left / _SECONDS,
        unpriced=unpriced,
    )
