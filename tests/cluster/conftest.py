"""Three Ray nodes with a token on this machine, and the table of what happened to them.

Run with ``make cluster-test``; the files here are not named as tests, so that the default run leaves them out.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_head import local_cluster
from s3_server import CREDENTIALS
from three_nodes import Nodes

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cluster" / "test.md"
Row = tuple[str, str, str]
ROWS = pytest.StashKey[list[Row]]()
SAID = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--cluster-page``: also write the table into the documentation."""
    parser.addoption("--cluster-page", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how a scenario ended: its test's name in words, what the test said, and the verdict."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        name = item.name.removeprefix("test_").replace("_", " ")
        verdict = "as promised" if report.passed else "FAILED"
        nothing: list[str] = []
        noted = item.stash.get(SAID, nothing)
        said = "; ".join(noted) or str(call.excinfo and call.excinfo.exconly())
        item.config.stash[ROWS].append((name, said.splitlines()[0], verdict))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table, and write it into the documentation if that is asked for."""
    rows = config.stash[ROWS]
    terminalreporter.section("three Ray nodes")
    for scenario, happened, verdict in rows:
        terminalreporter.write_line(f"{verdict:11} | {scenario} | {happened}")
    if config.getoption("--cluster-page") and rows:
        before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        PAGE.write_text(page(rows, before), encoding="utf-8")
        terminalreporter.write_line(f"wrote {PAGE.relative_to(ROOT)}")


def page(rows: Sequence[Row], before: str = "") -> str:
    """The table as a page; rows of scenarios that were not run stay as they were."""
    today = f"{datetime.now(UTC):%d %B %Y}"
    now = {row[0]: " | ".join(part.replace("|", "/") for part in (*row, today)) for row in rows}
    found = re.findall(r"^\| (.*) \|$", before, flags=re.MULTILINE)
    kept = {row.partition(" | ")[0]: row for row in found if not row.startswith("scenario")}
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        "# Test of a cluster",
        "",
        "What `make cluster-test` found. It starts three Ray nodes with token authentication on one machine (a head",
        "without CPUs and two workers with one each) and goes through what happens to sweeps on clusters, with a model",
        "of two layers. What it cannot show is a network between machines, and GPUs. A row is of the last run of its",
        "scenario: not all of them need be of one run.",
        "",
        f"{os.cpu_count()} CPU cores, {memory:.0f} GiB, {platform.system()}; Python {platform.python_version()}, Ray "
        f"{version('ray')}, torch {version('torch')}.",
        "",
        "| scenario | what happened | verdict | date |",
        "|---|---|---|---|",
        *(f"| {row} |" for row in (kept | now).values()),
        "",
    ]
    return "\n".join(lines)


@pytest.fixture
def happened(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes what a scenario found, in words, for the table."""
    said: list[str] = []
    request.node.stash[SAID] = said
    return said.append


@pytest.fixture(scope="session")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Mapping[str, Path]
) -> Iterator[Nodes]:
    """A head without CPUs, and two workers with one each."""
    work = tmp_path_factory.mktemp("work")
    (work / "runs").mkdir()
    data: dict[str, Any] = {}
    for role, path in tiny_data.items():
        shutil.copyfile(path, work / path.name)
        data[role] = {"source": path.name, "max_tokens": 64}
    sweep = {
        "schema": 1,
        "model": {"source": str(tiny_model)},
        "data": data | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl"},
        "batch": {"global_batch_size": 4},
        "engine": {"dtype": "fp32", "device": "cpu", "packing": 1},
        "space": {
            "optimizer.learning_rate": {
                "float": {"low": 1.0e-5, "high": 1.0e-4, "log": True},
                "why": "small, so that no trial ends early",
            }
        },
        "stop": {"past_target": None},
        "budget": {"trials": 2, "max_steps": 20, "probe_every": 4, "finalists": 0},
    }
    with local_cluster(cpus=0) as cluster:
        cluster.environment.update(CREDENTIALS)  # of a storage, for whoever runs on a worker
        for _ in range(2):
            cluster.start_worker(cpus=1)
        yield Nodes(cluster=cluster, work=work, sweep=sweep)
