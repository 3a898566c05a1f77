"""`doctor` in an environment where everything is in the way, made by variables and a mount namespace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuning.environment_checks import container, gpus, limits, network, other_rays, ray_folder

MOUNTS = """
mount -t tmpfs -o size=16m none /dev/shm
mount -t tmpfs -o ro none "$HOME"
ulimit -n 256
exec "$@"
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What `doctor` says there, by name."""
    folder = tmp_path_factory.mktemp("hostile")
    lock = folder / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (folder / "home").mkdir()
    environment = {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder / "home"),
        "TMPDIR": f"{folder}/{'x' * 100}",
        "TORCH_EXTENSIONS_DIR": str(lock.parents[1]),
        "RAY_ADDRESS": "10.255.255.1:6379\r",
        "https_proxy": "http://127.0.0.1:9",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "bash",
            "-c",
            MOUNTS,
            "bash",
            sys.executable,
            "-m",
            "tuning.cli",
            "doctor",
            "--json",
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr  # the cache lies in the home
    return {check["name"]: check for check in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("name", "status", "found", "fix"),
    [
        ("ray folder", "warn", "at most 43 fit into a Unix socket's path; /tmp/ray is taken", "set RAY_TMPDIR to"),
        ("home", "warn", "home cannot be written", "set UNLEARN_TUNE_CACHE, HF_HOME and MPLCONFIGDIR"),
        ("hub cache", "warn", "only what is there already", "set HF_HOME to"),
        ("cache folder", "error", "Read-only file system", "set UNLEARN_TUNE_CACHE to"),
        ("shared memory", "warn", "16 MiB free at /dev/shm", "docker run --shm-size=1g"),
        ("compile locks", "warn", "extensions/deepspeed_shm_comm/lock", "rm /"),
        ("proxies", "ok", "https_proxy: for hub and pip", ""),
        ("encoding", "warn", "the terminal's is ascii", "export LC_ALL=C.UTF-8"),
        ("line ends", "warn", "RAY_ADDRESS: the value ends in a carriage return", "dos2unix"),
        ("open files", "warn", "at most 256", "ulimit -n 1024"),
    ],
)  # fmt: skip
def test_doctor_knows_what_is_in_the_way(
    hostile: Mapping[str, Mapping[str, Any]], name: str, status: str, found: str, fix: str
) -> None:
    check = hostile[name]
    assert check["status"] == status
    assert found in check["found"]
    assert fix in check["fix"]


def test_an_address_of_a_cluster_is_not_looked_at_unasked(
    hostile: Mapping[str, Mapping[str, Any]],
) -> None:
    found = hostile["other Rays"]["found"]
    assert found.startswith("RAY_ADDRESS=10.255.255.1:6379 is not looked at without --address; ")


def test_without_a_home_doctor_says_where_the_cache_may_lie(tmp_path: Path) -> None:
    """A container's user without a name and a home; it may read what the tests lie in."""
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = subprocess.run(
        [
            "setpriv",
            "--reuid=54321",
            "--regid=54321",
            "--clear-groups",
            *may_read,
            sys.executable,
            "-m",
            "tuning.cli",
            "doctor",
            "--json",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["cache folder"]["status"] == "error"
    assert "UNLEARN_TUNE_CACHE" in checks["cache folder"]["fix"]
    assert checks["home"]["found"].startswith("this user has none")
    assert checks["home"]["status"] == "warn"


def test_what_ray_would_wait_for_is_an_error() -> None:
    """A network namespace whose loopback is down, an interface that is not there, no bash, and no place for runs."""
    unshare = shutil.which("unshare")
    assert unshare
    done = subprocess.run(
        [unshare, "--net", sys.executable, "-m", "tuning.cli", "doctor", "--json"],
        cwd="/proc/self",
        env=os.environ
        | {"PATH": "/nowhere", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    for name, found, fix in (
        ("run folder", "runs cannot be written", "start from a folder"),
        ("network", "127.0.0.1 cannot be reached", "ip link set lo up"),
        ("shell", "bash is not on PATH", "install bash"),
    ):
        assert checks[name]["status"] == "error"
        assert found in checks[name]["found"] and fix in checks[name]["fix"]
    check = network({"GLOO_SOCKET_IFNAME": "lo,eth77"})
    assert (check.status, "names eth77, which" in check.found) == ("error", True)
    assert network({"GLOO_SOCKET_IFNAME": "lo"}).status == "ok"


@pytest.fixture
def two_gpus(tmp_path: Path) -> Path:
    """A folder that stands for ``/``, with the devices of two GPUs."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    return tmp_path


def test_gpus_that_torch_cannot_use_are_an_error(
    two_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    check = gpus(two_gpus)
    assert check.status == "error"
    assert check.found.startswith("1 GPUs (CUDA_VISIBLE_DEVICES='1' shows 1 of 2)")
    assert "torch" in check.found and 'CUDA_VISIBLE_DEVICES=""' in check.fix


def test_gpus_that_a_variable_hides_are_no_error(
    two_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", "/nowhere")
    check = gpus(two_gpus)
    assert (check.status, check.found) == (
        "ok",
        "0 GPUs (CUDA_VISIBLE_DEVICES='' shows 0 of 2)",
    )


def test_a_containers_limits_are_named(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    (groups / "cpu.max").write_text("150000 100000\n", encoding="utf-8")
    (groups / "memory.max").write_text(f"{3 * 2**30}\n", encoding="utf-8")
    (groups / "pids.max").write_text("200\n", encoding="utf-8")
    found = container(tmp_path).found
    assert found.startswith(f"1.5 of {os.cpu_count()} cores; 3.0 GiB left of its memory limit")
    _files, processes = limits(tmp_path)
    assert (processes.status, processes.found) == (
        "warn",
        "at most 200; a Ray has some hundred threads",
    )
    assert "--pids-limit=1000" in processes.fix


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called as Ray's is."""
    program = tmp_path / "raylet"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        yield process
        process.kill()


def test_another_ray_on_the_machine_is_named(raylet: subprocess.Popen[bytes]) -> None:
    assert psutil.Process(raylet.pid).name() == "raylet"
    check = other_rays({})
    assert check.status == "warn"
    assert str(raylet.pid) in check.found
    assert "--address" in check.fix and "max_concurrent" in check.fix


def test_a_folder_for_sockets_as_told_is_fine() -> None:
    assert ray_folder({"TMPDIR": "/tmp"}).found == "/tmp/ray"
