"""What becomes of a run on three nodes whose state lies elsewhere: in an object store, or on a database server."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable

import pytest
from postgres import PASSWORD, Postgres
from s3_server import s3
from three_nodes import Nodes, ended, until

from core.store.durable import read_lines
from tuning.records import EVENTS_FILE

Said = Callable[[str], None]
pytestmark = pytest.mark.timeout(2400)

BUDGET = {"budget": {"trials": 4, "max_steps": 40}}


def told(nodes: Nodes, run: str) -> Counter[int]:
    """How often somebody was told that a trial ended, by trial."""
    lines = read_lines(nodes.work / "runs" / run / EVENTS_FILE)
    return Counter(line["number"] for line in lines if line["event"] == "TrialEnded")


def test_a_run_on_s3_outlives_its_driver_and_its_folder(nodes: Nodes, happened: Said) -> None:
    spec, folder = nodes.write("stored", BUDGET), nodes.work / "runs" / "stored"
    at = ("--address", nodes.cluster.address)
    with s3() as storage:
        sweep = nodes.begin("sweep", spec, "--storage", storage, *at)
        until(lambda: told(nodes, "stored"))
        sweep.kill()
        sweep.communicate()
        before, acknowledged = nodes.load("stored"), told(nodes, "stored")
        shutil.rmtree(folder)
        happened(f"driver killed and its folder deleted after {len(acknowledged)} of 4 trials")
        done = nodes.run("resume", folder, "--storage", storage, "--takeover", *at)
    assert done.status == 0, done.err
    after = nodes.load("stored")
    assert [t.state for t in after.trials] == ["COMPLETE"] * 4
    for number in acknowledged:
        assert after.trials[number].metrics == before.trials[number].metrics
        assert after.trials[number].attempt == before.trials[number].attempt
    assert set(told(nodes, "stored").values()) == {1}
    happened("gone on with from S3: 4 of 4, none twice")


def test_a_ledger_on_postgresql_is_taken_over(
    nodes: Nodes, happened: Said, postgres: Postgres
) -> None:
    nodes.cluster.environment["PGPASSWORD"] = PASSWORD
    at = ("--address", nodes.cluster.address)
    ledger = postgres.url(postgres.database(), password=None)
    first = nodes.begin("sweep", nodes.write("served", BUDGET), "--ledger", ledger, *at)
    until(lambda: told(nodes, "served"))

    refused = nodes.run("resume", "runs/served", *at)
    assert refused.status == 2, refused.err
    assert "another driver" in refused.err
    happened("a second driver was refused")

    done = nodes.run("resume", "runs/served", "--takeover", *at)
    assert done.status == 0, done.err
    fenced = ended(first)
    assert fenced.status == 4, fenced.err
    assert "took this run over" in fenced.err
    assert [t.state for t in nodes.load("served").trials] == ["COMPLETE"] * 4
    assert set(told(nodes, "served").values()) == {1}
    happened("with --takeover it went on, and the first ended with status 4: 4 of 4, none twice")
