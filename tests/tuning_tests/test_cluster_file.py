"""The shipped cluster file is valid, and every unsafe or misspelt variant is refused by its place."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuning.cluster import is_cluster_file, validate_cluster_file
from tuning.cluster.reading import MAX_BYTES

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "cluster.yaml"
SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

Change = Callable[[dict[str, Any]], object]


def write(path: Path, config: object) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture
def shipped() -> dict[str, Any]:
    loaded = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return copy.deepcopy(loaded)


def head(config: dict[str, Any]) -> dict[str, Any]:
    node_type = config["available_node_types"]["head"]
    assert isinstance(node_type, dict)
    return node_type


def replace_in(config: dict[str, Any], key: str, old: str, new: str) -> None:
    assert any(old in command for command in config[key])
    config[key] = [command.replace(old, new) for command in config[key]]


@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/gcp.yaml", "clusters/on-premise.yaml"])
def test_a_shipped_file_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_cluster_file(ROOT / name) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "places"),
    [
        pytest.param(
            lambda c: c.update(setup_comands=[]), ["setup_comands", "schema"], id="misspelt-key"
        ),
        pytest.param(
            lambda c: c.update(max_workers="four"), ["max_workers: ", "'four'"], id="wrong-type"
        ),
        pytest.param(
            lambda c: c["provider"].update(type="amazon"),
            ["provider.type: ", "amazon"],
            id="unknown-provider",
        ),
        pytest.param(lambda c: c.pop("provider"), ["provider.type: ", "nothing"], id="no-provider"),
        pytest.param(
            lambda c: c.update(head_node_type="main"), ["`head_node_type`"], id="unknown-head-type"
        ),
        pytest.param(
            lambda c: c["available_node_types"]["gpu_spot"].pop("resources"),
            ["available_node_types.gpu_spot: ", "'resources'"],
            id="no-resources",
        ),
        pytest.param(
            lambda c: c["available_node_types"].update(gpu_spot=3),
            ["available_node_types.gpu_spot: ", "got 3"],
            id="node-type-is-a-number",
        ),
        pytest.param(
            lambda c: c["available_node_types"]["gpu_spot"].update(min_workers=9),
            ["max_workers", "min_workers"],
            id="more-workers-than-allowed",
        ),
        pytest.param(
            lambda c: replace_in(c, "head_start_ray_commands", "RAY_AUTH_MODE=token", ""),
            ["head_start_ray_commands[1]: ", "token authentication"],
            id="head-without-token",
        ),
        pytest.param(
            lambda c: replace_in(c, "worker_start_ray_commands", "MODE=token", "MODE=disabled"),
            ["worker_start_ray_commands[1]: ", "RAY_AUTH_MODE=disabled"],
            id="worker-without-token",
        ),
        pytest.param(
            lambda c: c.pop("worker_start_ray_commands"),
            ["worker_start_ray_commands: ", "got nothing"],
            id="default-worker-start",
        ),
        pytest.param(
            lambda c: replace_in(c, "head_start_ray_commands", "127.0.0.1", "0.0.0.0"),
            ["head_start_ray_commands[1]: ", "--dashboard-host=0.0.0.0", "loopback"],
            id="open-dashboard",
        ),
        pytest.param(
            lambda c: replace_in(c, "head_start_ray_commands", "--dashboard-host=127.0.0.1", ""),
            ["head_start_ray_commands[1]: ", "loopback", "got nothing"],
            id="dashboard-host-left-out",
        ),
        pytest.param(
            lambda c: head(c).update(resources={"CPU": 2}),
            ["available_node_types.head.resources.CPU: ", "got 2"],
            id="trials-on-head",
        ),
        pytest.param(
            lambda c: head(c).update(resources={}),
            ["available_node_types.head.resources.CPU: ", "got nothing"],
            id="head-size-left-to-ray",
        ),
        pytest.param(
            lambda c: head(c)["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
            ["available_node_types.head.node_config.InstanceMarketOptions: ", "on demand"],
            id="spot-head",
        ),
        pytest.param(
            lambda c: c["setup_commands"].append(f"export AWS_SECRET_ACCESS_KEY={SECRET}"),
            ["setup_commands[6]: ", "AWS_SECRET_ACCESS_KEY=***"],
            id="secret-in-setup",
        ),
        pytest.param(
            lambda c: replace_in(
                c, "head_start_ray_commands", "ulimit", f"RAY_AUTH_TOKEN={SECRET} ulimit"
            ),
            ["head_start_ray_commands[1]: ", "RAY_AUTH_TOKEN=***"],
            id="token-in-start-command",
        ),
        pytest.param(
            lambda c: c.update(
                docker={
                    "image": "i",
                    "container_name": "c",
                    "run_options": [f"-e HF_TOKEN={SECRET}"],
                }
            ),
            ["docker.run_options[0]: ", "HF_TOKEN=***"],
            id="secret-in-container-environment",
        ),
        pytest.param(
            lambda c: replace_in(c, "head_start_ray_commands", "--port=6379", "--port=12345"),
            ["head_start_ray_commands[1]: ", "got 12345", "10002 to 19999"],
            id="port-of-workers",
        ),
        pytest.param(
            lambda c: c.pop("idle_timeout_minutes"),
            ["idle_timeout_minutes: ", "got nothing"],
            id="idle-workers-stay",
        ),
        pytest.param(
            lambda c: c["provider"].pop("cache_stopped_nodes"),
            ["provider.cache_stopped_nodes: ", "got nothing"],
            id="stopped-machines-stay",
        ),
        pytest.param(
            lambda c: c.update(setup_commands=["pip install -U torch"]),
            ["setup_commands: ", "locked versions"],
            id="unlocked-packages",
        ),
        pytest.param(
            lambda c: head(c)["node_config"].pop("MetadataOptions"),
            ["available_node_types.head.node_config.MetadataOptions.HttpTokens: ", "session"],
            id="credentials-without-session",
        ),
        pytest.param(
            lambda c: c["metadata"].update(storage="bucket/folder"),
            ["metadata.storage: ", "got bucket/folder", "s3://"],
            id="storage-of-no-kind",
        ),
        pytest.param(
            lambda c: c["metadata"]["price_per_hour"].pop("gpu_spot"),
            ["metadata.price_per_hour.gpu_spot: ", "must have a price"],
            id="type-without-price",
        ),
        pytest.param(
            lambda c: c["metadata"]["price_per_hour"].update(gpu_spott=1.0),
            ["metadata.price_per_hour.gpu_spott: ", "did you mean gpu_spot?"],
            id="price-of-no-type",
        ),
        pytest.param(
            lambda c: c["metadata"]["price_per_hour"].update(head=-1),
            ["metadata.price_per_hour.head: ", "got -1"],
            id="price-below-zero",
        ),
        pytest.param(
            lambda c: c["setup_commands"].insert(0, f"git clone https://me:{SECRET}@host/repo"),
            ["setup_commands[0]: ", "a password in a URL"],
            id="password-in-url",
        ),
    ],
)
def test_broken_file_is_refused_by_its_place(
    shipped: dict[str, Any], tmp_path: Path, change: Change, places: list[str]
) -> None:
    change(shipped)
    problems = validate_cluster_file(write(tmp_path / "cluster.yaml", shipped))
    assert len(problems) == 1, problems
    assert [place for place in places if place not in problems[0]] == [], problems
    assert ", got " in problems[0]
    assert SECRET not in problems[0]


def test_every_problem_is_named_at_once(shipped: dict[str, Any], tmp_path: Path) -> None:
    shipped["max_workers"] = "four"
    head(shipped)["resources"] = {"CPU": 1, "GPU": 1}
    replace_in(shipped, "head_start_ray_commands", "127.0.0.1", "0.0.0.0")
    problems = validate_cluster_file(write(tmp_path / "cluster.yaml", shipped))
    assert [problem.split(":")[0] for problem in problems] == [
        "max_workers",
        "head_start_ray_commands[1]",
        "available_node_types.head.resources.CPU",
        "available_node_types.head.resources.GPU",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        pytest.param("cluster_name: b\n", "cluster_name: a key may stand once", id="duplicate-key"),
        pytest.param("metadata: {a: &x [1], b: *x}\n", "an alias (*name)", id="alias"),
        pytest.param("docker: {\n", "must be plain YAML", id="not-yaml"),
        pytest.param("docker: !!python/name:os.system\n", "python/name:os.system", id="object"),
        pytest.param("metadata: " + "[" * 5000 + "\n", "must be plain YAML", id="too-deep"),
        pytest.param("#" * MAX_BYTES, f"at most {MAX_BYTES} bytes", id="too-large"),
    ],
)
def test_unsafe_yaml_is_refused(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(SHIPPED.read_text(encoding="utf-8") + text, encoding="utf-8")
    (problem,) = validate_cluster_file(path)
    assert place in problem


@pytest.mark.parametrize("text", ["", "- a\n", "3\n"])
def test_anything_but_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    (problem,) = validate_cluster_file(path)
    assert "cluster.yaml: must be a mapping, got" in problem


def test_missing_file_is_a_problem(tmp_path: Path) -> None:
    (problem,) = validate_cluster_file(tmp_path / "none.yaml")
    assert problem.startswith("none.yaml: must be a readable file")


@pytest.mark.parametrize(
    ("lock", "n_problems"),
    [
        pytest.param(f"ray[default,tune]=={metadata.version('ray')}\n", 0, id="same"),
        pytest.param("ray==2.9.3\n", 1, id="other"),
        pytest.param("torch==2.13.0\n", 1, id="absent"),
    ],
)
def test_lock_must_pin_the_installed_ray(
    shipped: dict[str, Any], tmp_path: Path, lock: str, n_problems: int
) -> None:
    (tmp_path / "requirements.lock").write_text(lock, encoding="utf-8")
    problems = validate_cluster_file(write(tmp_path / "cluster.yaml", shipped))
    assert len(problems) == n_problems
    assert all(problem.startswith("requirements.lock.ray: ") for problem in problems)


def test_cluster_file_is_told_from_a_sweep(shipped: dict[str, Any]) -> None:
    assert is_cluster_file(shipped)
    assert is_cluster_file({"cluster_name": "a"})
    assert not is_cluster_file({"schema": 1, "name": "demo", "space": {}})


def test_import_does_not_load_ray() -> None:
    code = "import sys, tuning.cluster; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
