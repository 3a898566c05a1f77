"""Kills of the processes of real sweeps: driver, ranks, packs, nodes, head; and signals."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import pytest

from faults.local_cluster import LocalCluster, child
from faults.real_sweep import LONGER, RealSweep, resumed
from faults.tally import Tally

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

PACKED: Mapping[str, Any] = {
    "engine": {"dtype": "fp32", "device": "cpu", "packing": 4},
    "resources": {"max_concurrent": 4},
}
EVENTS = (2, 10, 19, 28, 37, 46)
"""Of a driver, at which it is killed: after it asked, dispatched, took a probe, committed a result, told a trial."""
NODE_KILLS = 5

Sweeping = Callable[..., RealSweep]


def test_driver(sweeping: Sweeping, control: Any, tally: Tally) -> None:
    """Driver killed at events: after it asked, dispatched, took a probe, committed, told; the next one, too."""
    sweep = sweeping()
    for k in EVENTS:
        verb = (
            ("resume", "runs/tiny")
            if (sweep.run_dir / "ledger.db").exists()
            else ("sweep", "sweep.yaml")
        )
        status, said = sweep.ended(sweep.start(*verb, killed_at=k))
        assert status == -signal.SIGKILL, said
        tally.driver_kills += 1
    resumed(sweep)
    sweep.judge(control)
    assert tally.holds, tally.problems


def test_ranks(sweeping: Sweeping, tally: Tally) -> None:
    """Rank of two killed in a step: one of the two ranks of a trial; it is tried again under its number."""
    two = {"ranks_per_trial": 2, "max_concurrent": 1}
    sweep = sweeping(**{**LONGER, "resources": two})
    process = sweep.start("sweep", "sweep.yaml", "--trials", "2")
    for n_kills in (1, 2):
        sweep.wait_for("TrialProbed", 3 * n_kills, process)
        sweep.ranks(process)[0].kill()
        tally.trial_kills += 1
        sweep.wait_for("TrialBroke", n_kills, process)
    status, said = sweep.ended(process)
    assert status in (0, 3), said
    broke = [e for e in sweep.events() if e["event"] == "TrialBroke"]
    assert [e["is_final"] for e in broke] == [False, False]
    run = sweep.judge()
    assert sum(t.attempt for t in run.trials) == len(run.trials) + len(broke)
    assert tally.holds, tally.problems


def test_pack(sweeping: Sweeping, control: Any, tally: Tally) -> None:
    """Pack killed when half of its slots are finished: those are told, the others are tried again."""
    sweep = sweeping(**PACKED)
    process = sweep.start("sweep", "sweep.yaml")
    sweep.wait_for("TrialEnded", 2, process)
    finished = {e["number"] for e in sweep.events() if e["event"] == "TrialEnded"}
    (rank,) = sweep.ranks(process, "ray::PackRank")
    rank.kill()
    tally.trial_kills += 1
    status, said = sweep.ended(process)
    assert status == 0, said
    run = sweep.judge(control)
    assert {run.trials[number].attempt for number in finished} == {1}
    assert any(trial.attempt == 2 for trial in run.trials)
    assert tally.holds, tally.problems


def trains(node: psutil.Process) -> bool:
    """Whether a rank runs on a node."""
    return any(c.name().startswith("ray::Rank") for c in node.children(recursive=True))


def test_nodes(cluster: LocalCluster, sweeping: Sweeping, long_control: Any, tally: Tally) -> None:
    """Node killed under its trials: another one has joined before, and takes them over."""
    sweep = sweeping(environment=cluster.environment, **LONGER)
    nodes = [cluster.add_node()]
    process = sweep.start("sweep", "sweep.yaml", "--address", cluster.address)
    for n_kills in range(1, NODE_KILLS + 1):
        sweep.wait_for("TrialProbed", 1, process)
        nodes.append(cluster.add_node())
        before = sum(e["event"] == "TrialProbed" for e in sweep.events())
        sweep.wait_for("TrialProbed", before + 1, process)
        (busy,) = (node for node in nodes if trains(node))
        busy.kill()
        nodes.remove(busy)
        tally.node_kills += 1
        sweep.wait_for("TrialBroke", n_kills, process)
    status, said = sweep.ended(process)
    assert status in (0, 3), said
    sweep.judge(long_control)
    assert tally.holds, tally.problems


def test_head(cluster: LocalCluster, sweeping: Sweeping, control: Any, tally: Tally) -> None:
    """Head of the cluster killed: the driver ends, and a resume elsewhere goes on."""
    sweep = sweeping(environment=cluster.environment, resources={"max_concurrent": 1})
    cluster.add_node()
    process = sweep.start("sweep", "sweep.yaml", "--address", cluster.address)
    sweep.wait_for("TrialEnded", 1, process)
    child(cluster.head, "gcs_server").kill()
    tally.node_kills += 1
    status, said = sweep.ended(process)
    assert status not in (0, 3), said  # Ray itself ends the process, with a word of its own
    assert "go on after a stop with: unlearn-tune resume runs/tiny" in said
    cluster.close()
    status, said = sweep.ended(sweep.start("resume", "runs/tiny"))
    assert status == 0, said
    sweep.judge(control)
    assert tally.holds, tally.problems


SIGNALS = {
    "SIGTERM": ((signal.SIGTERM,), (143,)),
    "SIGINT": ((signal.SIGINT,), (130,)),
    "SIGINT twice": ((signal.SIGINT, signal.SIGINT), (130, -signal.SIGINT)),
}


def test_signals(sweeping: Sweeping, control: Any, tally: Tally) -> None:
    """Signals to the driver: its status says which, and the command that it prints goes on, word for word."""
    sweep = sweeping()
    command = "unlearn-tune sweep sweep.yaml"
    for name, (sent, statuses) in SIGNALS.items():
        process = sweep.shell(command)
        before = len([e for e in sweep.events() if e["event"] == "TrialProbed"])
        sweep.wait_for("TrialProbed", before + 2, process)
        for number in sent:
            process.send_signal(number)
            time.sleep(0.2)
        status, said = sweep.ended(process)
        tally.other_faults += 1
        if status not in statuses:
            tally.problems.append(f"{name}: status {status}, not {statuses}: {said[-800:]}")
        printed = re.findall(r"unlearn-tune resume \S+", " ".join(said.split()))
        assert printed, said
        command = printed[-1]
    status, said = sweep.ended(sweep.shell(command))
    assert status == 0, said
    sweep.judge(control)
    assert tally.holds, tally.problems


def test_two_resumes(sweeping: Sweeping, control: Any, tally: Tally) -> None:
    """Two resumes at once: one goes on, the other is refused."""
    sweep = sweeping()
    process = sweep.start("sweep", "sweep.yaml", killed_at=EVENTS[-1])
    assert sweep.ended(process)[0] == -signal.SIGKILL
    tally.driver_kills += 1
    both = [sweep.start("resume", "runs/tiny") for _ in range(2)]
    ended = [sweep.ended(process) for process in both]
    tally.other_faults += 1
    assert sorted(status for status, _ in ended) == [0, 2], ended
    (said,) = [said for status, said in ended if status == 2]
    assert "another driver holds this run" in said
    sweep.judge(control)
    assert tally.holds, tally.problems
