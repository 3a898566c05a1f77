"""A sweep whose ledger lies on a server, on a real Ray: a second driver is refused, and one that takes over ends it.

Two sweeps' worth of time, so `make takeover` runs it and `make test` does not.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import command_line
import psutil
import pytest
import yaml
from postgres import PASSWORD, Postgres
from small_sweep import tiny_values

from tuning.run import load_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SWEEP: Mapping[str, Any] = {
    "method": {"forget_loss": "ihl", "retain_loss": "nll"},
    "engine": {"dtype": "fp32", "device": "cpu", "packing": 1},
    "optimizer": {"learning_rate": 1.0e-3},
    "space": {"adapter.rank": {"categorical": [2, 3, 4], "why": "small"}},
    "budget": {"trials": 3, "max_steps": 30, "finalists": 0},
    "resources": {"max_concurrent": 1},
}


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``unlearn-tune ...``; its password is in the environment alone."""
    return command_line.started(folder, *arguments, PGPASSWORD=PASSWORD)


def events(folder: Path) -> list[dict[str, Any]]:
    """The run's event log."""
    path = folder / "runs/tiny/events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def test_who_takes_over_goes_on_and_the_driver_before_ends_without_a_loss(
    tmp_path: Path, tiny_model: Path, tiny_data: Mapping[str, Path], postgres: Postgres
) -> None:
    text = yaml.safe_dump(tiny_values(tiny_model, tiny_data) | dict(SWEEP))
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    url = postgres.url(postgres.database(), password=None)
    first = started(tmp_path, "sweep", "sweep.yaml", "--ledger", url)
    while not any(e["event"] == "TrialProbed" for e in events(tmp_path)):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    children = psutil.Process(first.pid).children(recursive=True)

    refused = started(tmp_path, "resume", "runs/tiny")
    said = refused.communicate()[1]
    assert refused.returncode == 2 and "another driver holds this run" in said, said
    assert "resume runs/tiny --takeover" in said

    second = started(tmp_path, "resume", "runs/tiny", "--takeover")
    _, ended = first.communicate(timeout=300)
    assert first.returncode == 4, ended
    assert f"another driver took this run over: pid {second.pid} on " in ended
    assert "Traceback" not in ended
    psutil.wait_procs(children, timeout=60)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]

    _, went_on = second.communicate(timeout=300)
    assert second.returncode in (0, 3), went_on
    run = load_run(tmp_path / "runs/tiny")
    assert [t.state in ("COMPLETE", "PRUNED") for t in run.trials] == [True] * 3
    told = Counter(e["number"] for e in events(tmp_path) if e["event"] == "TrialEnded")
    assert told == Counter(range(3))
    assert run.facts.ledger["url"].startswith("postgresql://tuner@/")
