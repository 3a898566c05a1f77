"""Kills of the processes of real sweeps: driver, ranks, packs, nodes, head; and signals.

Not collected by name: ``python -m faults`` gives this file to pytest, with the file for what is found in
``FAULTS_FOUND``. Each test is a scenario and adds its row, whether or not it holds.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_sweep import tiny_values

from faults.local_cluster import LocalCluster, child
from faults.real_sweep import RealSweep, judged
from faults.tally import Tally
from tuning.run import load_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

FOUND = "FAULTS_FOUND"
"""Environment variable: the file to which each scenario adds its tally."""
WHY = {"why": "small"}
PACKED: Mapping[str, Any] = {
    "engine": {"dtype": "fp32", "device": "cpu", "packing": 4},
    "resources": {"max_concurrent": 4},
}
EVENTS = (2, 10, 19, 28, 37, 46)
"""Of a driver, at which it is killed: after it asked, dispatched, took a probe, committed a result, told a trial."""
NODE_KILLS = 5
PORT = 26391  # outside 10002 to 19999, Ray's range for workers

Values = Callable[..., dict[str, Any]]
Sweeping = Callable[..., RealSweep]


@pytest.fixture(scope="session")
def values(tiny_model: Path, tiny_data: Mapping[str, Path]) -> Values:
    """A grid of six points over the tiny model, some of which the guard stops."""

    def made(**changes: Any) -> dict[str, Any]:
        return (
            tiny_values(tiny_model, tiny_data)
            | {
                "method": {"forget_loss": "ihl", "retain_loss": "nll"},
                "space": {
                    "optimizer.learning_rate": {"categorical": [1.0e-3, 3.0e-3, 3.0e-2]} | WHY,
                    "adapter.rank": {"categorical": [2, 4]} | WHY,
                },
                "sampler": {"name": "grid", "seed": 0},
                "budget": {"trials": 6, "max_steps": 8, "finalists": 1, "max_attempts": 8},
                "resources": {"max_concurrent": 2},
            }
            | changes
        )

    return made


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The scenario's, which is added to what was found; what the test raises is a problem of it."""
    said = str(request.function.__doc__)
    tally = Tally(scenario=f"Ray: {said.partition(':')[0].lower()}", what=said)
    try:
        yield tally
    finally:
        if FOUND in os.environ:
            with Path(os.environ[FOUND]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(tally.plain()) + "\n")


@pytest.fixture
def sweeping(tmp_path: Path, values: Values, tally: Tally) -> Iterator[Sweeping]:
    """Make a sweep, in a folder of its own: ``sweeping(engine=...)``."""
    numbers = itertools.count()

    def made(*, environment: Mapping[str, str] | None = None, **changes: Any) -> RealSweep:
        folder = tmp_path / f"sweep-{next(numbers)}"
        folder.mkdir()
        return RealSweep(folder, values(**changes), tally, environment=environment)

    yield made


@pytest.fixture(scope="session")
def control(
    tmp_path_factory: pytest.TempPathFactory, values: Values
) -> Sequence[Mapping[str, Any]]:
    """What the sweep concludes without faults."""
    sweep = RealSweep(tmp_path_factory.mktemp("control"), values(), Tally(scenario="control"))
    status, said = sweep.ended(sweep.start("sweep", "sweep.yaml"))
    assert status == 0, said
    return judged(load_run(sweep.run_dir))


def resume(sweep: RealSweep) -> None:
    status, said = sweep.ended(sweep.start("resume", "runs/tiny"))
    if status not in (0, 3):
        sweep.tally.problems.append(f"resume ended with {status}: {said[-800:]}")


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
    resume(sweep)
    sweep.judge(control)
    assert tally.holds, tally.problems


def test_ranks(sweeping: Sweeping, tally: Tally) -> None:
    """Rank of two killed in a step: one of the two ranks of a trial; it is tried again under its number."""
    two = {"ranks_per_trial": 2, "max_concurrent": 1}
    sweep = sweeping(resources=two)
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
    run = sweep.judge(judged(load_run(sweep.run_dir)))
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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that has no node for trials yet."""
    found = LocalCluster(tmp_path, port=PORT)
    try:
        yield found
    finally:
        found.close()


def test_nodes(cluster: LocalCluster, sweeping: Sweeping, control: Any, tally: Tally) -> None:
    """Node killed under its trials: another one has joined before, and takes them over."""
    sweep = sweeping(environment=cluster.environment, resources={"max_concurrent": 1})
    node = cluster.add_node()
    process = sweep.start("sweep", "sweep.yaml", "--address", cluster.address)
    for n_kills in range(1, NODE_KILLS + 1):
        sweep.wait_for("TrialProbed", 3 * n_kills, process)
        following = cluster.add_node()
        node.kill()
        tally.node_kills += 1
        sweep.wait_for("TrialBroke", n_kills, process)
        node = following
    status, said = sweep.ended(process)
    assert status == 0, said
    sweep.judge(control)
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
    assert status not in (0, 3), said
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
