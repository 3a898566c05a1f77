"""A sweep where everything is in the way: one for all, because each start of Ray takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from command_line import ROOT

from tuning.run import load_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SETUP = """
/bin/mount -t tmpfs -o size=16m none /dev/shm
/bin/mount -t tmpfs -o ro none "$HOME"
exec "$@"
"""


def surroundings(folder: Path) -> dict[str, str]:
    """Variables as batch systems, containers and laptops have them, each of which has ended some program."""
    lock = folder / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()  # left by a process that was killed while it compiled
    (folder / "home").mkdir()
    (folder / "tools").mkdir()
    (folder / "tools" / "bash").symlink_to("/bin/bash")  # no compiler, nor any other tool
    return {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "UNLEARN_TUNE_CACHE": str(folder / "cache") + "\r",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder / "home"),
        "PATH": str(folder / "tools"),
        "TMPDIR": str(folder / ("x" * 100)),
        "TORCH_EXTENSIONS_DIR": str(lock.parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_ADDRESS": "10.255.255.1:6379",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
        "grpc_proxy": "http://127.0.0.1:9",
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "3",
        "MASTER_ADDR": "10.255.255.1",
        "MASTER_PORT": "1",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }


def test_a_sweep_runs_where_everything_is_in_the_way(
    tmp_path: Path, tiny_model: Path, tiny_data: Mapping[str, Path]
) -> None:
    """Read-only home, 16 MiB of shared memory, no compiler but its stale lock, long TMPDIR, proxies, ASCII."""
    data = {role: {"source": str(path), "max_tokens": 64} for role, path in tiny_data.items()}
    values = {
        "schema": 1,
        "name": "hostile",
        "model": {"source": str(tiny_model)},
        "data": data | {"probe_rows": 4, "report_rows": 4},
        "method": {"forget_loss": "ihl"},
        "engine": {"dtype": "fp32"},
        "space": {"adapter.rank": {"categorical": [2, 4], "why": "naïve – it matters"}},
        "optimizer": {"learning_rate": 1e-3},
        "budget": {"trials": 1, "max_steps": 1, "finalists": 0},
        "resources": {"max_concurrent": 1},
    }
    text = yaml.safe_dump(values, allow_unicode=True).replace("\n", "\r\n")
    (tmp_path / "sweep.yaml").write_bytes(text.encode())
    unshare, bash = shutil.which("unshare"), shutil.which("bash")
    assert unshare and bash
    done = subprocess.run(
        [
            unshare,
            "--mount",
            bash,
            "-c",
            SETUP,
            bash,
            sys.executable,
            "-m",
            "tuning.cli",
            "sweep",
            "sweep.yaml",
        ],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        capture_output=True,
        timeout=800,
        check=False,
    )
    err = done.stderr.decode("ascii")
    assert "Traceback" not in err, err
    assert done.returncode in (0, 3), err  # a step of one trial need not forget enough
    (trial,) = load_run(tmp_path / "runs" / "hostile").trials
    assert trial.state in ("COMPLETE", "PRUNED"), trial
    assert sorted(p.name for p in (tmp_path / "extensions").rglob("*")) == [
        "deepspeed_shm_comm",
        "lock",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["cache", "extensions", "home", "runs", "sweep.yaml", "tools"]
    )


OWN_RAY = """
import sys
from pathlib import Path
import ray
from core.errors import UserError
from tuning import run_sweep
from tuning.files import load_sweep
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
try:
    run_sweep(load_sweep(Path(sys.argv[1])), Path("run"))
except UserError as err:
    print(err)
print(ray.is_initialized(), Path("run").exists())
"""


def test_a_ray_of_the_same_process_is_neither_used_nor_ended(tmp_path: Path) -> None:
    """As in a notebook, where somebody has called ``ray.init`` before."""
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY, str(ROOT / "search_spaces" / "demo.yaml")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    refusal, left = done.stdout.splitlines()[-2:]
    assert refusal.startswith("this process has a Ray already") and "ray.shutdown()" in refusal
    assert left == "True False"
