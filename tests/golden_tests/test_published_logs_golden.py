"""Aggregates of a published evaluation's rows are the published ones, where its logs are at hand."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "published_logs.py"
VARIABLE = "UNLEARN_TUNE_DATA"
LOGS = "published-logs"
FULL = "llama-3.2-1b-full-forget10.TOFU_EVAL.json.gz"


def compared(folder: Path | None) -> subprocess.CompletedProcess[str]:
    """The script's comparison with the logs below a folder."""
    surroundings = {name: value for name, value in os.environ.items() if name != VARIABLE}
    path = os.pathsep.join(p for p in sys.path if p)
    named = {} if folder is None else {VARIABLE: str(folder)}
    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=surroundings | named | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def logs() -> Path:
    """The folder that the variable names."""
    folder = Path(os.environ.get(VARIABLE) or ".")
    if not (folder / LOGS / FULL).is_file():
        pytest.skip(f"{VARIABLE} names no folder with {LOGS}/{FULL} (nxZhai/BalDRO, saves/eval)")
    return folder


def test_every_aggregate_of_the_logs_is_the_published_one(logs: Path) -> None:
    done = compared(logs)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + 13  # under a heading and a ruler


def test_an_aggregate_that_is_another_is_found(logs: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(logs / LOGS, tmp_path / LOGS, copy_function=shutil.copyfile)
    copied.chmod(0o755)
    with gzip.open(copied / FULL, "rt", encoding="utf-8") as file:
        log = json.load(file)
    log["mia_loss"]["agg_value"] += 1e-14
    log["privleak"]["agg_value"] = float("nan")
    with gzip.open(copied / FULL, "wt", encoding="utf-8") as file:
        json.dump(log, file)
    done = compared(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("further apart than rounding: mia_loss, full (1.0e-14), privleak")


def test_without_the_folder_it_says_what_to_name() -> None:
    done = compared(None)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{VARIABLE}: name the folder that holds {LOGS}\n"
