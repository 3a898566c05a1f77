"""How a cluster stands, for a person and for scripts."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tuning.cluster.control import Looked
from tuning.cluster.prices import Costs, costs, type_of
from tuning.wording import duration

_HOUR_S = 3600.0


def cluster_json(looked: Looked, config: Mapping[str, Any]) -> dict[str, Any]:
    """``cluster status --json``."""
    paid = costs(config, looked.machines, seconds_left=looked.seconds_left)
    return {
        "nodes": [
            {
                "address": node["node_ip"],
                "state": node["state"],
                "is_head": machine.is_head,
                "node_type": type_of(machine, config),
                "cpus": machine.resources["CPU"],
                "gpus": machine.resources["GPU"],
                "hours": round(machine.seconds / _HOUR_S, 4),
            }
            for node, machine in zip(looked.nodes, looked.machines, strict=True)
        ],
        "jobs": [asdict(job) for job in looked.jobs],
        "runs": looked.runs,
        "cost": None if paid is None else asdict(paid),
    }


def cluster_text(looked: Looked, config: Mapping[str, Any]) -> str:
    """The same in lines."""
    found = cluster_json(looked, config)
    gone = sum(node["state"] != "ALIVE" for node in found["nodes"])
    lines = [f"nodes: {len(found['nodes']) - gone} alive, {gone} gone"]
    for node in found["nodes"]:
        if node["state"] == "ALIVE":
            kind = "head" if node["is_head"] else "worker"
            of = f" ({node['node_type']})" if node["node_type"] else ""
            lines.append(
                f"  {node['address']:15} {kind}{of}: {node['cpus']:g} CPUs, {node['gpus']:g} GPUs, "
                f"up for {duration(node['hours'] * _HOUR_S)}"
            )
    lines.append(f"jobs: {len(looked.jobs)}")
    lines += [f"  {job.name}: {_job_in_words(job.status, job.exit_code)}" for job in looked.jobs]
    if looked.runs is None:
        lines.append("runs: the head did not say; look at it with: cluster logs")
    else:
        lines.append(f"runs: {len(looked.runs)}")
        lines += [f"  {_run_in_words(run)}" for run in looked.runs]
    paid = costs(config, looked.machines, seconds_left=looked.seconds_left)
    lines.append(
        "cost: not known without metadata.price_per_hour" if paid is None else cost_text(paid)
    )
    return "\n".join(lines)


def cost_text(paid: Costs) -> str:
    """What a cluster has cost and costs, in a line."""
    to_come = "" if paid.to_come is None else f", about ${paid.to_come:.2f} to come"
    unpriced = f"; {paid.unpriced} machines have no price" if paid.unpriced else ""
    return (
        f"cost: ${paid.so_far:.2f} since the head began{to_come}; ${paid.per_hour:.2f} an hour now, at most "
        f"${paid.per_hour_at_most:.2f}{unpriced}"
    )


def _job_in_words(status: str, exit_code: int | None) -> str:
    return status.lower() if exit_code is None else f"{status.lower()}, exit status {exit_code}"


def _run_in_words(run: Mapping[str, Any]) -> str:
    if "problem" in run:
        return f"{run['run']}: {run['problem']}"
    counts = run["counts"]
    finished = counts["complete"] + counts["pruned"] + counts["failed"]
    left = "" if run.get("eta_s") is None else f", {duration(run['eta_s'])} left"
    return f"{run['run']}: {run['state']}, {finished} of {run['target']} trials{left}"
