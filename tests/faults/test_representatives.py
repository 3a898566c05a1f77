"""One fault of each kind, and what must hold after it; ``make faults`` has all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from command_line import ROOT

from faults import shim

NAMES = (
    "driver killed at every event",
    "trials outlive their driver",
    "trials killed at events",
    "trial killed in all attempts",
    "every writing call fails",
    "write cut in half",
    "killed in every writing call",
    "disk full for good",
    "damaged files",
    "values that are no numbers",
    "not enough memory",
    "full disk",
    "wrong clock",
    "second driver",
)

pytestmark = pytest.mark.skipif(shim.why_not() is not None, reason=str(shim.why_not()))


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What the scenarios found, one case of each."""
    found = tmp_path_factory.mktemp("faults") / "found.json"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--short", "--json", found, "--only", *NAMES],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.exists(), done.stderr
    return {tally["scenario"]: tally for tally in json.loads(found.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_loses_nothing_and_tells_nothing_twice(
    tallies: Mapping[str, Mapping[str, Any]], name: str
) -> None:
    (tally,) = [tally for scenario, tally in tallies.items() if scenario.startswith(name)]
    if tally["skipped"]:
        pytest.skip(tally["skipped"])
    assert tally["problems"] == []
    assert tally["faults"] > 0, "no fault fired"
    assert (tally["lost"], tally["twice"]) == (0, 0)


def test_a_scenario_in_which_nothing_fires_does_not_hold() -> None:
    from faults.tally import Tally

    assert Tally(scenario="nothing").verdict == "BROKEN"
    assert Tally(scenario="one", driver_kills=1).verdict == "holds"
    assert Tally(scenario="lost", driver_kills=1, lost=1).verdict == "BROKEN"
