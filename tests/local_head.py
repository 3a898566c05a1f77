"""A Ray cluster of this machine with a token, whose processes are told from others' by where that token lies."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_STORE = ("--object-store-memory", "100000000")
_FIRST_PORT = 26400  # outside 10002 to 19999, Ray's range for workers


@dataclass(kw_only=True)
class LocalCluster:
    """A head, and nodes that join it.

    Attributes:
        folder: Holds the token, and Ray's logs below ``ray``; with a short path, for sockets.
        gcs_port: Of the head's GCS.
        dashboard_port: Of its dashboard, on loopback.
        environment: What its processes and clients are started with.
    """

    folder: Path
    gcs_port: int
    dashboard_port: int
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Address of this machine; Ray writes it for loopback."""
        said = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True)
        return said.stdout.split()[0]

    @property
    def address(self) -> str:
        """Of the GCS, for drivers."""
        return f"{self.host}:{self.gcs_port}"

    @property
    def dashboard(self) -> str:
        """Of the dashboard, for jobs."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a node."""
        agent, runtime = free_ports(2)
        ports = (
            "--dashboard-agent-listen-port",
            str(agent),
            "--runtime-env-agent-port",
            str(runtime),
        )
        ray = (sys.executable, "-m", "ray.scripts.scripts")
        done = subprocess.run(
            [*ray, "start", *_STORE, *ports, *arguments],
            env=self.environment | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout

    def start_head(self, *, cpus: int) -> None:
        """Start the head, with its dashboard on loopback."""
        self.start(
            *("--head", "--port", str(self.gcs_port), "--num-cpus", str(cpus)),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard_port)),
            *("--temp-dir", str(self.folder / "ray")),
        )

    def start_worker(self, *, cpus: int, environment: Mapping[str, str] | None = None) -> None:
        """Have a node join."""
        joining = ("--address", self.address, "--num-cpus", str(cpus))
        self.start(*joining, environment=environment)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes that were started with this cluster's token and have all of ``words`` in their command."""
        token = self.environment["RAY_AUTH_TOKEN_PATH"]
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("RAY_AUTH_TOKEN_PATH") == token
                if is_ours and process.pid != os.getpid():
                    command = " ".join(process.cmdline())
                    found += [process] if all(word in command for word in words) else []
            except psutil.Error:
                continue
        return found

    def end(self) -> None:
        """End all its processes, and no others."""
        for _ in range(3):  # what is started while others end
            started = self.processes()
            for process in started:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            psutil.wait_procs(started, timeout=20)


def free_ports(n: int, *, first: int = _FIRST_PORT) -> list[int]:
    """Ports that nobody listens at, outside those of Ray's workers."""
    found: list[int] = []
    port = first + secrets.randbelow(4000)
    while len(found) < n:
        port += 1
        with socket.socket() as server:
            try:
                server.bind(("", port))
            except OSError:
                continue
            found.append(port)
    return found


@contextmanager
def local_cluster(*, cpus: int, python_path: Sequence[str] = ()) -> Iterator[LocalCluster]:
    """A head with this many CPUs; it and what joined it end with the context."""
    folder = Path(tempfile.mkdtemp(prefix="ut-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    gcs, dashboard = free_ports(2)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": "/tmp",
        "PYTHONPATH": os.pathsep.join([*python_path, *(p for p in sys.path if p)]),
    }
    environment.pop("RAY_ADDRESS", None)
    cluster = LocalCluster(
        folder=folder, gcs_port=gcs, dashboard_port=dashboard, environment=environment
    )
    try:
        cluster.start_head(cpus=cpus)
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)
