"""Sweeps of a file that are started, watched and read as a user would, by the command line."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from command_line import started

from tuning.run import Run, load_run


class Sweeper:
    """Runs the command line in a folder of its own."""

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self.folder = folder
        self.values = dict(values)
        self.write({})

    def write(self, changes: Mapping[str, Any]) -> None:
        """Write the sweep file with top-level keys replaced."""
        text = yaml.safe_dump(self.values | dict(changes), sort_keys=False)
        (self.folder / "sweep.yaml").write_text(text, encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``unlearn-tune ...``."""
        return started(self.folder, *arguments)

    def call(self, *arguments: str, expect: int = 0) -> str:
        """Run ``unlearn-tune ...`` to its end and return what it printed."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=500)
        assert process.returncode == expect, (
            f"{arguments} ended with {process.returncode}:\n{out}\n{err}"
        )
        assert "Traceback" not in err, err
        return out

    def run(self, name: str) -> Run:
        """The run folder, read."""
        return load_run(self.folder / "runs" / name)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The run's event log."""
        path = self.folder / "runs" / name / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def wait_for(self, name: str, event: str, count: int, process: subprocess.Popen[str]) -> None:
        """Wait until the event has occurred ``count`` times."""
        deadline = time.monotonic() + 240
        while sum(e["event"] == event for e in self.events(name)) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, self.events(name)
            time.sleep(0.05)
