"""What a cluster has cost and will cost, by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command, is_refused, write

from tuning.cluster.control import Job, Looked, machine_of
from tuning.cluster.prices import Machine, costs, foreseen_cost, most_per_hour, type_of
from tuning.cluster.view import cluster_json, cluster_text
from tuning.config import ResourcesSpec

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
"""Prices: head 0.10, spot 0.45 (at most 4), on demand 1.01 (none)."""
ON_GPU = ResourcesSpec(gpus_per_rank=1.0, cpus_per_rank=4)
WORKER = {"CPU": 4.0, "GPU": 1.0}
NOW = datetime(2026, 11, 26, 12, 0, 0)


def machine(*, hours: float, is_head: bool = False, is_alive: bool = True) -> Machine:
    resources = {"CPU": 0.0} if is_head else WORKER
    return Machine(resources=resources, is_head=is_head, is_alive=is_alive, seconds=3600 * hours)


def test_machines_are_paid_for_by_the_hour_those_that_are_gone_included() -> None:
    machines = [machine(hours=10, is_head=True), machine(hours=2), machine(hours=4, is_alive=False)]
    paid = costs(CONFIG, machines, seconds_left=1800.0)
    assert paid is not None
    assert paid.so_far == pytest.approx(10 * 0.10 + 2 * 0.45 + 4 * 0.45)
    assert paid.per_hour == pytest.approx(0.10 + 0.45)
    assert paid.to_come == pytest.approx(0.5 * (0.10 + 0.45))
    assert paid.per_hour_at_most == pytest.approx(0.10 + 4 * 0.45)
    assert paid.unpriced == 0


def test_a_machine_of_no_type_is_counted_and_not_priced() -> None:
    odd = Machine(resources={"CPU": 3.0}, is_head=False, is_alive=True, seconds=3600.0)
    paid = costs(CONFIG, [odd], seconds_left=None)
    assert paid is not None
    assert (paid.so_far, paid.unpriced, paid.to_come) == (0.0, 1, None)


def test_a_machine_says_its_type_or_is_known_by_what_it_has() -> None:
    named = Machine(
        resources=WORKER, is_head=False, is_alive=True, seconds=0, node_type="gpu_on_demand"
    )
    assert type_of(named, CONFIG) == "gpu_on_demand"
    assert type_of(machine(hours=1), CONFIG) == "gpu_spot"
    assert type_of(machine(hours=1, is_head=True), CONFIG) == "head"


def test_without_prices_nothing_is_said() -> None:
    config = {**CONFIG, "metadata": {}}
    assert costs(config, [machine(hours=1)], seconds_left=None) is None
    assert foreseen_cost(config, ON_GPU, workers=2, time_s=(1.0, 2.0)) is None
    assert most_per_hour(config) == 0.0


def test_a_sweep_costs_between_its_cheapest_and_its_dearest_way() -> None:
    cost = foreseen_cost(CONFIG, ON_GPU, workers=2, time_s=(3600.0, 7200.0))
    assert cost is not None
    idle = 10 / 60
    assert cost.machines == 2
    assert cost.low == pytest.approx(0.10 + 2 * 0.45 * (1 + idle))
    assert cost.high == pytest.approx(2 * 0.10 + 4 * 0.45 * (2 + idle))


def test_ranks_that_fit_on_no_machine_have_no_cost() -> None:
    eight = ResourcesSpec(gpus_per_rank=1.0, cpus_per_rank=64)
    assert foreseen_cost(CONFIG, eight, workers=1, time_s=(1.0, 2.0)) is None


def node(**changes: Any) -> dict[str, Any]:
    return {
        "node_ip": "10.0.0.1",
        "is_head_node": False,
        "state": "ALIVE",
        "resources_total": {"CPU": 4.0, "GPU": 1.0, "memory": "18.369 GiB"},
        "labels": {},
        "start_time_ms": "2026-11-26 10:00:00.500000",
        "end_time_ms": "1970-01-01 00:00:00",
    } | changes


def test_a_node_is_paid_for_until_it_is_gone() -> None:
    assert machine_of(node(), now=NOW).seconds == pytest.approx(7199.5)
    gone = node(state="DEAD", end_time_ms="2026-11-26 10:30:00.500000")
    assert machine_of(gone, now=NOW).seconds == pytest.approx(1800.0)
    assert not machine_of(gone, now=NOW).is_alive


def test_a_status_tells_nodes_jobs_runs_and_cost() -> None:
    counts = {"complete": 2, "pruned": 1, "failed": 0}
    run = {"run": "a", "state": "running", "counts": counts, "target": 9, "eta_s": 3600.0}
    looked = Looked(
        nodes=[node(is_head_node=True, resources_total={}), node()],
        jobs=[Job(name="a-attempt-1", status="RUNNING", exit_code=None, began=0.0)],
        runs=[run],
    )
    found = cluster_json(looked, CONFIG)
    assert [n["node_type"] for n in found["nodes"]] == ["head", "gpu_spot"]
    assert found["cost"]["to_come"] == pytest.approx(0.55)
    text = cluster_text(looked, CONFIG)
    for part in (
        "2 alive, 0 gone",
        "a-attempt-1: running",
        "a: running, 3 of 9 trials",
        "$0.55 to come",
    ):
        assert part in text
    silent = Looked(nodes=looked.nodes, jobs=[], runs=None)
    assert silent.seconds_left is None
    assert "the head did not say" in cluster_text(silent, {})


def test_a_dry_run_foresees_the_cost_on_a_cluster(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    file = write(tiny_sweep)
    done = tune("sweep", file, "--dry-run", "--cluster", ROOT / "cluster.yaml", "--json")
    assert "cluster.yaml at its largest" in done.json["estimate"]["because"]
    assert 0 < done.json["cost"]["low"] <= done.json["cost"]["high"]
    is_refused(tune("sweep", file, "--cluster", ROOT / "cluster.yaml"), "--cluster: only --dry-run")
