"""The live report in a real browser, while a real sweep runs in another process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import chromium
import pytest
from small_sweep import tiny_values
from sweeper import Sweeper

from tuning.live import serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        chromium.found() is None, reason="no Chromium here; apt-get install chromium brings one"
    ),
]

N_TRIALS = 4

SHOWN = """
(tiles => [document.getElementById("live")?.textContent, tiles.length === 0 ? null : tiles
    .filter(e => ["complete", "pruned", "failed"].includes(e.querySelector("span").textContent))
    .reduce((n, e) => n + Number(e.querySelector("b").textContent), 0)]
)(Array.from(document.querySelectorAll(".tile")))
"""
"""What the page calls the sweep's state, and how many trials have finished by it; ``null`` before it has either."""


@pytest.fixture
def sweeper(tmp_path: Path, tiny_model: Path, tiny_data: Mapping[str, Path]) -> Sweeper:
    """Trials one after the other, each long enough for the page to look."""
    values = tiny_values(tiny_model, tiny_data) | {
        "space": {
            "optimizer.learning_rate": {"float": {"low": 1.0e-4, "high": 1.0e-3}, "why": "gentle"}
        },
        "adapter": {"rank": 2},
        "pruning": {"retain": None},
        "stop": {"past_target": None},
        "budget": {"trials": N_TRIALS, "max_steps": 24, "finalists": 0, "skip_probes": False},
        "sampler": {"name": "random", "seed": 0},
        "resources": {"max_concurrent": 1},
    }
    return Sweeper(tmp_path, values)


def shown(page: chromium.Browser) -> tuple[str | None, int | None]:
    """State and number of finished trials on the page."""
    try:
        state, n_finished = page.value(SHOWN)
    except chromium.LoadedAnewError:
        return None, None
    return state, n_finished


def wait_until_more_than(page: chromium.Browser, n: int) -> int:
    """Wait for the page to show more finished trials, without touching it."""
    deadline = time.monotonic() + 240
    while (found := shown(page)[1]) is None or found <= n:
        assert time.monotonic() < deadline, (n, found)
        time.sleep(0.2)
    return found


def test_an_open_page_counts_the_trials_of_a_running_sweep_as_they_finish(
    sweeper: Sweeper, tmp_path: Path
) -> None:
    with (
        chromium.browser(tmp_path / "profile") as page,
        sweeper.start("sweep", "sweep.yaml") as process,
    ):
        sweeper.wait_for("tiny", "TrialBegan", 1, process)
        with serving(tmp_path / "runs" / "tiny") as address:
            page.open(address, width=1280)
            opened = wait_until_more_than(page, -1)
            risen = wait_until_more_than(page, opened)
            assert process.poll() is None, "it rose only after the sweep had ended"
            assert opened < risen <= N_TRIALS
            _, err = process.communicate(timeout=300)
            assert process.returncode in (0, 3), err
            deadline = time.monotonic() + 60
            while shown(page) != (sweeper.run("tiny").state, N_TRIALS):
                assert time.monotonic() < deadline, shown(page)
                time.sleep(0.2)
            assert page.requests.count(address) >= 3, "it loaded itself anew"
            assert page.complaints == []
