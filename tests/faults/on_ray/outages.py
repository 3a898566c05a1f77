"""What real sweeps wait for, or are told of: hung ranks, machines taken away, servers that are away for a while."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import psutil
import pytest
from postgres import PASSWORD, Postgres
from s3_server import CREDENTIALS, S3

from faults.local_cluster import LocalCluster
from faults.real_sweep import RealSweep
from faults.tally import Tally

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

N_FAULTS = 3
AWAY_S = 20.0

LONG: Mapping[str, Any] = {
    "space": {
        "optimizer.learning_rate": {"float": {"low": 1.0e-5, "high": 2.0e-5}, "why": "small"}
    },
    "sampler": {"name": "tpe", "seed": 0},
    "pruning": {"retain": None},
    "stop": {"past_target": None, "no_effect": None},
    "resources": {"max_concurrent": 1},
}
"""Trials that nothing stops."""

Sweeping = Callable[..., RealSweep]


def budget(**changes: Any) -> dict[str, Any]:
    return {"finalists": 0, "skip_probes": False, "max_attempts": 1} | changes


def test_notice(cluster: LocalCluster, sweeping: Sweeping, tally: Tally) -> None:
    """Notice that a machine is taken away: another node goes on from a checkpoint, and no attempt is counted."""
    spent = budget(trials=1, max_steps=6000, probe_every=500)
    sweep = sweeping(environment=cluster.environment, **LONG, budget=spent)
    node = cluster.add_node()
    process = sweep.start("sweep", "sweep.yaml", "--address", cluster.address)
    for n_notices in range(1, N_FAULTS + 1):
        sweep.wait_for("TrialProbed", 2 * n_notices, process)
        following = cluster.add_node()
        cluster.give_notice(node, seconds=60)
        sweep.wait_for("TrialBegan", n_notices + 1, process)
        node.kill()
        tally.node_kills += 1
        tally.other_faults += 1
        node = following
    status, said = sweep.ended(process)
    assert status == 0, said
    found = Counter(e["event"] for e in sweep.events())
    assert found["TrialResumed"] == N_FAULTS and found["TrialEnded"] == 1, found
    run = sweep.judge()
    assert [t.state for t in run.trials] == ["COMPLETE"]
    assert tally.holds, tally.problems


def test_hang(sweeping: Sweeping, tally: Tally) -> None:
    """Rank of two that hangs: both are killed, and the trial is tried again."""
    spent = budget(trials=1, max_steps=2400, probe_every=600, hang_timeout_s=5.0, max_attempts=4)
    two = {"ranks_per_trial": 2, "max_concurrent": 1}
    sweep = sweeping(**{**LONG, "resources": two, "budget": spent})
    process = sweep.start("sweep", "sweep.yaml")
    for n_hangs in range(1, N_FAULTS + 1):
        sweep.wait_for("TrialBegan", n_hangs, process)
        before = len([e for e in sweep.events() if e["event"] == "TrialProbed"])
        sweep.wait_for("TrialProbed", before + 1, process)
        ranks = sweep.ranks(process)
        time.sleep(1.0)  # what is done right after a probe may take half an hour
        ranks[n_hangs % 2].suspend()
        tally.other_faults += 1
        _, alive = psutil.wait_procs(ranks, timeout=60)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        sweep.wait_for("TrialBroke", n_hangs, process)
    status, said = sweep.ended(process)
    assert status == 0, said
    broke = [e for e in sweep.events() if e["event"] == "TrialBroke"]
    assert all("HungRankError" in str(e) for e in broke), broke
    run = sweep.judge()
    assert [t.state for t in run.trials] == ["COMPLETE"]
    assert tally.holds, tally.problems


def goes_on(
    sweep: RealSweep,
    process: psutil.Popen,
    *,
    stop: Callable[[], None],
    start: Callable[[], None],
) -> None:
    """A server is away, and back, after each of the first trials; the sweep ends well all the same."""
    for n_ended in range(1, N_FAULTS + 1):
        sweep.wait_for("TrialEnded", n_ended, process)
        stop()
        sweep.tally.other_faults += 1
        time.sleep(AWAY_S)
        start()
    status, said = sweep.ended(process)
    assert status == 0, said


def test_database_away(
    sweeping: Sweeping, control: Sequence[Mapping[str, Any]], tally: Tally, postgres: Postgres
) -> None:
    """Database away for twenty seconds: trials go on meanwhile, and everything is told when it is back."""
    sweep = sweeping(environment=os.environ | {"PGPASSWORD": PASSWORD})
    url = postgres.url(postgres.database(), password=None)
    process = sweep.start("sweep", "sweep.yaml", "--ledger", url)
    goes_on(sweep, process, stop=partial(postgres.stop, mode="immediate"), start=postgres.start)
    sweep.judge(control)
    assert tally.holds, tally.problems


@pytest.fixture
def storage() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


def test_storage_away(
    sweeping: Sweeping, control: Sequence[Mapping[str, Any]], tally: Tally, storage: S3
) -> None:
    """Storage away for twenty seconds: what is finished waits, and is committed when it is back."""
    sweep = sweeping(environment=os.environ | CREDENTIALS)
    process = sweep.start("sweep", "sweep.yaml", "--storage", storage.address)
    goes_on(sweep, process, stop=storage.stop, start=storage.start)
    sweep.judge(control)
    assert tally.holds, tally.problems
