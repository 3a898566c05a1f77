"""Real sweeps to be broken, what they conclude when they are not, and the row of each scenario.

Nothing in this folder is collected by name: ``python -m faults --ray`` gives its files to pytest, with the file for
what is found in ``FAULTS_FOUND``. Each test is a scenario and adds its row, whether or not it holds.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_sweep import tiny_values

from faults.local_cluster import LocalCluster
from faults.real_sweep import LONGER, RealSweep, judged
from faults.tally import Tally
from tuning.run import load_run

FOUND = "FAULTS_FOUND"
"""Environment variable: the file to which each scenario adds its tally."""
WHY = {"why": "small"}
PORT = 26391  # outside 10002 to 19999, Ray's range for workers

Judged = Sequence[Mapping[str, Any]]
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whatever a scenario raises is one of its problems."""
    report = yield
    tally = getattr(item, "funcargs", {}).get("tally")
    if isinstance(tally, Tally) and report.skipped:
        tally.skipped = str(report.longrepr)
    if isinstance(tally, Tally) and report.failed and report.when in ("setup", "call"):
        tally.problems.append(f"{item.name}: {str(report.longrepr)[-3000:]}")
    return report


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The scenario's, which is added to what was found."""
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
def control(tmp_path_factory: pytest.TempPathFactory, values: Values) -> Judged:
    """What the sweep concludes without faults."""
    return concluded(tmp_path_factory.mktemp("control"), values())


@pytest.fixture(scope="session")
def long_control(tmp_path_factory: pytest.TempPathFactory, values: Values) -> Judged:
    """What one of longer trials concludes."""
    return concluded(tmp_path_factory.mktemp("long-control"), values(**LONGER))


def concluded(folder: Path, values: dict[str, Any]) -> Judged:
    sweep = RealSweep(folder, values, Tally(scenario="control"))
    status, said = sweep.ended(sweep.start("sweep", "sweep.yaml"))
    assert status in (0, 3), said
    return judged(load_run(sweep.run_dir))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that has no node for trials yet."""
    found = LocalCluster(tmp_path, port=PORT)
    try:
        yield found
    finally:
        found.close()
