"""What happens to sweeps on a cluster of three nodes. Each test is a row of the table of ``make cluster-test``.

A scenario of another kind (another storage, another ledger) is another file beside this one, ``*scenarios.py``, with
the same fixtures.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from three_nodes import Nodes, ended, until

Said = Callable[[str], None]
pytestmark = pytest.mark.timeout(2400)


def finished(nodes: Nodes, run: str) -> int:
    return sum(t.state in ("COMPLETE", "PRUNED") for t in nodes.load(run).trials)


def attempts(nodes: Nodes, run: str) -> dict[int, int]:
    """Attempts that left a result, by trial."""
    folders = (nodes.work / "runs" / run / "trials").glob("*/attempt-*/result.json")
    counted: dict[int, int] = {}
    for result in folders:
        number = int(result.parts[-3])
        counted[number] = counted.get(number, 0) + 1
    return counted


def programs(nodes: Nodes) -> Path:
    """Folder of the head's programs, as ``metadata.program`` names them."""
    folder = nodes.work / "bin"
    folder.mkdir(exist_ok=True)
    for name, module in (("unlearn-tune", "-m tuning.cli"), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


def test_a_submitted_sweep_runs_on_both_workers_and_survives_its_driver(
    nodes: Nodes, happened: Said, tmp_path: Path
) -> None:
    spec = nodes.write("survives", {"budget": {"trials": 3, "max_steps": 40}})
    there = ("--work-folder", nodes.work, "--program", programs(nodes) / "unlearn-tune")
    at = ("--address", nodes.cluster.dashboard)
    submit = ("cluster", "submit", spec, "--supervise", "--every", 1, "--json", *there, *at)
    supervisor = nodes.begin(*submit)

    on = until(lambda: {rank.ppid() for rank in nodes.ranks()} if len(nodes.ranks()) > 1 else None)
    assert len(on) == 2
    happened("ranks on both workers")

    refused = nodes.run("resume", "runs/survives", "--address", nodes.cluster.address)
    assert refused.status == 2, refused.err
    assert "another driver holds this run" in refused.err
    happened("a second driver was refused")

    until(lambda: finished(nodes, "survives") >= 1)
    before = finished(nodes, "survives")
    (driver,) = nodes.cluster.processes("tuning.cli", "sweep", "submitted/survives")
    driver.send_signal(signal.SIGKILL)
    happened(f"the driver was killed after {before} of 3 trials")

    done = ended(supervisor)
    assert done.status == 0, done.err
    assert json.loads(done.out)["job"] == "survives-attempt-2"
    states = [t.state for t in nodes.load("survives").trials]
    assert states == ["COMPLETE"] * 3, states
    assert set(attempts(nodes, "survives").values()) == {1}
    happened("another job went on: 3 of 3, none twice")

    status = nodes.run("cluster", "status", *there, *at, "--json").json
    assert len(status["nodes"]) == 3
    assert [(r["run"], r["state"]) for r in status["runs"]] == [("survives", "done")]


def test_a_worker_that_is_killed_loses_no_trial(nodes: Nodes, happened: Said) -> None:
    spec = nodes.write(
        "lost-worker", {"budget": {"trials": 4, "max_steps": 40, "finalists": 2, "samples": 0}}
    )
    sweep = nodes.begin("sweep", spec, "--address", nodes.cluster.address)
    until(lambda: len({rank.ppid() for rank in nodes.ranks()}) == 2)
    until((nodes.work / "runs" / "lost-worker" / "ledger.db").exists)
    until(lambda: finished(nodes, "lost-worker") >= 1)
    until(lambda: bool(nodes.ranks()))
    lost = nodes.ranks()[0].parent()
    assert lost is not None
    for process in [*lost.children(recursive=True), lost]:
        process.send_signal(signal.SIGKILL)
    happened(
        f"a worker's raylet and processes were killed after {finished(nodes, 'lost-worker')} of 4 trials"
    )
    done = ended(sweep)
    assert done.status == 0, done.err
    trials = nodes.load("lost-worker").trials
    assert [t.state for t in trials] == ["COMPLETE"] * 4
    assert max(t.attempt or 1 for t in trials) > 1
    again = sum((t.attempt or 1) > 1 for t in trials)
    assert set(attempts(nodes, "lost-worker").values()) == {1}
    happened(
        f"{again} of its trials began again on the other worker: 4 of 4, none twice, finalists measured there"
    )
    nodes.cluster.start_worker(cpus=1)


def test_a_client_without_the_token_runs_nothing(
    nodes: Nodes, happened: Said, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("f" * 64, encoding="utf-8")
    spec = nodes.write("stranger")
    refused = nodes.run("sweep", spec, "--address", nodes.cluster.address, token=token)
    assert refused.status == 2, refused.err
    assert "Traceback" not in refused.err
    assert not (nodes.work / "runs" / "stranger").exists()
    at = ("--address", nodes.cluster.dashboard, "--work-folder", nodes.work)
    asked = nodes.run("cluster", "submit", spec, *at, token=token)
    assert asked.status == 2, asked.err
    assert "oken" in asked.err
    assert "Traceback" not in asked.err
    happened("refused as a driver and as a client of the dashboard, with exit status 2")


def test_a_trial_of_two_ranks_spreads_over_both_workers(nodes: Nodes, happened: Said) -> None:
    resources = {"ranks_per_trial": 2, "placement": "strict_spread"}
    spec = nodes.write(
        "spread",
        {"resources": resources, "budget": {"trials": 1, "max_steps": 20}},
    )
    sweep = nodes.begin("sweep", spec, "--address", nodes.cluster.address)
    on: Any = until(lambda: {r.ppid() for r in nodes.ranks()} if len(nodes.ranks()) == 2 else None)
    done = ended(sweep)
    assert done.status == 0, done.err
    assert len(on) == 2
    (trial,) = nodes.load("spread").trials
    assert trial.state == "COMPLETE"
    happened("its two ranks were children of two raylets; COMPLETE")


def test_a_node_with_other_code_is_refused(nodes: Nodes, happened: Said, tmp_path: Path) -> None:
    other = tmp_path / "peft-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 9.9.9\n", "utf-8")
    path = f"{tmp_path}:{nodes.cluster.environment['PYTHONPATH']}"
    before = {p.pid for p in nodes.workers()}
    nodes.cluster.start_worker(cpus=1, environment={"PYTHONPATH": path})
    (odd,) = [p for p in nodes.workers() if p.pid not in before]
    refused = nodes.run("sweep", nodes.write("unlike"), "--address", nodes.cluster.address)
    assert refused.status == 2, refused.err
    assert "peft is 9.9.9 there and " in refused.err
    assert not (nodes.work / "runs" / "unlike").exists()
    happened("the node and both versions were named before the first trial")
    for process in [*odd.children(recursive=True), odd]:
        process.kill()
