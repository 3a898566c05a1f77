"""A sweep on an existing Ray cluster of two nodes, which the test starts and stops by its own pids."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from local_head import free_ports
from small_sweep import tiny_values

from core.store.durable import read_lines
from tuning.records import EVENTS_FILE, attempt_folder
from tuning.run import load_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TUNE = (sys.executable, "-m", "tuning.cli")


def ray_command(
    *arguments: str, env: Mapping[str, str], hidden: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Ray's own command line, in a mount namespace of its own in which a folder is another one."""
    own_mounts = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
    within = [] if hidden is None else [*own_mounts, str(hidden)]
    return subprocess.run(
        [*within, sys.executable, "-m", "ray.scripts.scripts", *arguments],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def sees_the_runs() -> bool:
    """Whether the worker node sees the folder of runs."""
    return True


@pytest.fixture
def two_nodes(tmp_path: Path, sees_the_runs: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a cluster: a head without CPUs, and one worker node; token authentication on."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (tmp_path / "token").write_text("0" * 64, encoding="utf-8")
    (tmp_path / "scratch").mkdir()
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_TMPDIR": "/tmp",
        "UNLEARN_TUNE_SCRATCH": str(tmp_path / "scratch"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    host = subprocess.run(
        ["hostname", "-I"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    (port,) = free_ports(1)
    store = ["--object-store-memory", "100000000"]
    head = ray_command(
        "start",
        "--head",
        "--port",
        str(port),
        "--num-cpus",
        "0",
        "--include-dashboard",
        "false",
        *store,
        env=env,
    )
    assert head.returncode == 0, head.stderr + head.stdout
    address = f"{host}:{port}"
    join(address, env, hidden=None if sees_the_runs else runs)
    yield address, env
    started = _started_with(env["RAY_AUTH_TOKEN_PATH"])
    for process in started:
        process.kill()
    psutil.wait_procs(started, timeout=20)


def join(address: str, env: Mapping[str, str], *, hidden: Path | None = None) -> None:
    """Start a worker node of one CPU."""
    store = ["--object-store-memory", "100000000"]
    joining = ["start", "--address", address, "--num-cpus", "1", *store]
    worker = ray_command(*joining, env=env, hidden=hidden)
    assert worker.returncode == 0, worker.stderr + worker.stdout


def _started_with(token: str) -> list[psutil.Process]:
    """This cluster's processes and their children, by the token that they were started with; no others."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("RAY_AUTH_TOKEN_PATH") == token:
                family = (process, *process.children(recursive=True))
                found |= {member.pid: member for member in family}
        except psutil.Error:
            continue
    return list(found.values())


def far_sweep(
    folder: Path,
    tiny_model: Path,
    tiny_data: Mapping[str, Path],
    *options: str,
    address: str,
    env: Any,
) -> subprocess.CompletedProcess[str]:
    """A small sweep on the cluster, from the command line in ``folder``."""
    write_sweep(folder, tiny_model, tiny_data)
    return subprocess.run(
        [*TUNE, "sweep", "sweep.yaml", "--address", address, *options],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def write_sweep(folder: Path, tiny_model: Path, tiny_data: Mapping[str, Path]) -> None:
    """The sweep file that ``far_sweep`` runs."""
    values = tiny_values(tiny_model, tiny_data) | {
        "name": "far",
        "space": {
            "optimizer.learning_rate": {
                "float": {"low": 1.0e-4, "high": 1.0e-3, "log": True},
                "why": "small",
            }
        },
        "budget": {"trials": 2, "max_steps": 2},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def test_a_sweep_runs_on_the_worker_node_of_an_existing_cluster(
    two_nodes: tuple[str, dict[str, str]],
    tmp_path: Path,
    tiny_model: Path,
    tiny_data: Mapping[str, Path],
) -> None:
    address, env = two_nodes
    done = far_sweep(tmp_path, tiny_model, tiny_data, address=address, env=env)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "runs" / "far")
    assert [t.state for t in run.trials] == ["COMPLETE", "COMPLETE"]
    assert run.driver.concurrent == 1


def test_a_cluster_that_does_not_answer_is_refused_with_the_address(
    tmp_path: Path, tiny_model: Path, tiny_data: Mapping[str, Path]
) -> None:
    values = {
        "schema": 1,
        "name": "nobody",
        "model": {"source": str(tiny_model)},
        "data": {r: {"source": str(p)} for r, p in tiny_data.items()}
        | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl"},
        "space": {"optimizer.learning_rate": {"categorical": [1.0e-4], "why": "one"}},
        "budget": {"trials": 1, "max_steps": 1},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", "sweep", "sweep.yaml", "--address", "127.0.0.1:26399"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:26399: the cluster does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "nobody").exists()


@pytest.mark.storage
@pytest.mark.skipif(os.geteuid() != 0, reason="hiding a folder from a node needs root")
@pytest.mark.parametrize("sees_the_runs", [False])
def test_a_node_that_does_not_share_the_run_folder_is_named_and_needs_none_with_a_storage(
    two_nodes: tuple[str, dict[str, str]],
    tmp_path: Path,
    tiny_model: Path,
    tiny_data: Mapping[str, Path],
) -> None:
    address, env = two_nodes
    done = far_sweep(tmp_path, tiny_model, tiny_data, address=address, env=env)
    assert done.returncode == 2, done.stderr
    host = address.partition(":")[0]
    expected = f"error: runs/far: node {host} does not share the run folder: "
    assert expected in done.stderr
    assert "all nodes mount under one path" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").iterdir())
    kept = ("--storage", str(tmp_path / "storage"))
    done = far_sweep(tmp_path, tiny_model, tiny_data, *kept, address=address, env=env)
    assert done.returncode == 2, done.stderr
    assert "storage: no such folder; make it, or mount it" in done.stderr
    (tmp_path / "storage").mkdir()
    done = far_sweep(tmp_path, tiny_model, tiny_data, *kept, address=address, env=env)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "runs" / "far")
    assert [t.state for t in run.trials] == ["COMPLETE", "COMPLETE"]
    assert all(t.report_metrics is not None for t in run.trials if t.feasible)
    assert all((run.path / attempt_folder(t.number, 1) / "log.txt").is_file() for t in run.trials)
    assert not list(Path(env["UNLEARN_TUNE_SCRATCH"]).iterdir())


@pytest.mark.storage
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.geteuid() != 0, reason="hiding a folder from a node needs root")
@pytest.mark.parametrize("sees_the_runs", [False])
def test_a_driver_lost_with_its_disk_is_replaced_from_the_storage(
    two_nodes: tuple[str, dict[str, str]],
    tmp_path: Path,
    tiny_model: Path,
    tiny_data: Mapping[str, Path],
) -> None:
    """Two worker nodes, each with a scratch of its own and none with the run folder."""
    address, env = two_nodes
    (tmp_path / "other-scratch").mkdir()
    (tmp_path / "storage").mkdir()
    env = env | {"UNLEARN_TUNE_SCRATCH": str(tmp_path / "other-scratch")}
    join(address, env, hidden=tmp_path / "runs")
    write_sweep(tmp_path, tiny_model, tiny_data)
    run_dir, kept = tmp_path / "runs" / "far", ("--storage", str(tmp_path / "storage"))
    begin = (*TUNE, "sweep", "sweep.yaml", "--trials", "5", "--address", address, *kept)
    with (tmp_path / "driver.txt").open("w") as said:
        driver = subprocess.Popen(begin, cwd=tmp_path, env=env, stdout=said, stderr=said)
        until = time.monotonic() + 900.0
        while not acknowledged(run_dir):
            assert driver.poll() is None, (tmp_path / "driver.txt").read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.1)
        driver.kill()
        driver.wait()
    before, told = load_run(run_dir), acknowledged(run_dir)
    assert len(told) < 5
    shutil.rmtree(run_dir)
    done = subprocess.run(
        [*TUNE, "resume", "runs/far", "--takeover", "--address", address, *kept],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = load_run(run_dir)
    assert [t.state for t in after.trials] == ["COMPLETE"] * 5
    for number in told:
        assert after.trials[number].attempt == before.trials[number].attempt == 1
        assert after.trials[number].metrics == before.trials[number].metrics
    known = [t for t in before.trials if t.params and t.attempt]
    assert [after.trials[t.number].params for t in known] == [t.params for t in known]


def acknowledged(run_dir: Path) -> list[int]:
    """Trials of which somebody was told that they ended."""
    lines = read_lines(run_dir / EVENTS_FILE)
    return [line["number"] for line in lines if line["event"] == "TrialEnded"]
