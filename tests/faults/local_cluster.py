"""A Ray cluster of several nodes on this machine, each of which can be killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_STARTS_S = 120.0
_STORE = ("--object-store-memory", "100000000", "--disable-usage-stats", "--block")
_NOTICES: Mapping[str, str] = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}
"""A dead node, or head, is noticed within seconds instead of minutes."""


class LocalCluster:
    """A head without CPUs, and nodes with one CPU each; ended, and all its processes, by :meth:`close`."""

    def __init__(self, folder: Path, *, port: int) -> None:
        """Start the head, with token authentication."""
        (folder / "token").write_text("0" * 64, encoding="utf-8")
        self.environment = {
            **os.environ,
            **_NOTICES,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_TMPDIR": "/tmp",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        self._started: list[psutil.Process] = []
        self.address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
        head = ("--head", "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false")
        self.head = self._start(*head, until="gcs_server")

    def add_node(self) -> psutil.Process:
        """Start a node; its raylet."""
        node = self._start("--address", self.address, "--num-cpus", "1", until="raylet")
        return child(node, "raylet")

    def give_notice(self, raylet: psutil.Process, *, seconds: int) -> None:
        """Say of a node that it is taken away soon, as a cloud's notice does; whoever calls this takes it away."""
        (node,) = (a.partition("=")[2] for a in raylet.cmdline() if a.startswith("--node_id="))
        given = f"from tuning.cluster.spot import drain; drain({self.address!r}, {node!r}, seconds={seconds})"
        subprocess.run([sys.executable, "-c", given], env=self.environment, check=True)

    def _start(self, *arguments: str, until: str) -> psutil.Process:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, *_STORE]
        process = psutil.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._started.append(process)
        deadline = time.monotonic() + _STARTS_S
        while not _children(process, until):
            assert process.is_running() and time.monotonic() < deadline, arguments
            time.sleep(0.1)
        return process

    def close(self) -> None:
        """End every process that was started, and its children."""
        family = [
            member
            for process in self._started
            if process.is_running()
            for member in (process, *process.children(recursive=True))
        ]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=20)


def child(process: psutil.Process, name: str) -> psutil.Process:
    """A process among those that another one started."""
    (found,) = _children(process, name)
    return found


def _children(process: psutil.Process, name: str) -> list[Any]:
    return [c for c in process.children(recursive=True) if c.name() == name]
