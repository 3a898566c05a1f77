"""A head without CPUs and two workers on this machine, and sweeps on them from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from command_line import Done
from local_head import LocalCluster

from tuning.run import Run, load_run

_TURN_S = 0.2


@dataclass(kw_only=True)
class Nodes:
    """The nodes, and what runs on them.

    Attributes:
        cluster: Head and workers.
        work: The folder that all share, with ``runs``.
        sweep: A small sweep as plain values, with data in files of ``work``.
    """

    cluster: LocalCluster
    work: Path
    sweep: Mapping[str, Any]

    def workers(self) -> list[psutil.Process]:
        """The raylets of the workers."""
        raylets = [p for p in self.cluster.processes("raylet/raylet") if "raylet" in p.name()]
        return [p for p in raylets if "--head" not in p.cmdline()]

    def ranks(self) -> list[psutil.Process]:
        """Processes that are a rank of a trial."""
        return self.cluster.processes("ray::Rank")

    def driver(self, run: str) -> list[psutil.Process]:
        """The driver of a run."""
        found = self.cluster.processes("python", "unlearn-tune", run)
        return [p for p in found if "cluster" not in p.cmdline() and "bash" not in p.cmdline()[0]]

    def write(self, name: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
        """A sweep file in ``work``, with sections changed."""
        values = json.loads(json.dumps(self.sweep)) | {"name": name}
        for section, change in (changes or {}).items():
            values[section] = values.get(section, {}) | change
        path = self.work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def begin(self, *words: object, token: Path | None = None) -> subprocess.Popen[str]:
        """Start ``unlearn-tune`` in ``work``."""
        other = {} if token is None else {"RAY_AUTH_TOKEN_PATH": str(token)}
        return subprocess.Popen(
            [sys.executable, "-m", "tuning.cli", *map(str, words)],
            cwd=self.work,
            env=self.cluster.environment | other,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, token: Path | None = None) -> Done:
        """Run ``unlearn-tune`` in ``work``."""
        process = self.begin(*words, token=token)
        return ended(process)

    def load(self, run: str) -> Run:
        return load_run(self.work / "runs" / run)


def ended(process: subprocess.Popen[str], timeout_s: float = 1200.0) -> Done:
    """Wait for a command."""
    out, err = process.communicate(timeout=timeout_s)
    return Done(process.returncode, out, err)


def until(found: Callable[[], Any], *, timeout_s: float = 900.0) -> Any:
    """Wait until something is found."""
    end = time.monotonic() + timeout_s
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < end, "it did not happen"
        time.sleep(_TURN_S)
