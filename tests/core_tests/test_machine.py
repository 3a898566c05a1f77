"""What a process may use: limits of containers of both versions, and the GPUs that the environment shows."""

import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.model.machine import (
    Gpu,
    container_limits,
    free_cpus,
    free_memory_gib,
    installed_gpus,
    listed_gpus,
    oom_kills,
    processor,
    shown_in_words,
    visible_gpus,
)

GIB = 2**30


def machine(folder: Path, groups: str, files: Mapping[str, str]) -> Path:
    """A folder that stands for ``/``: ``proc/self/cgroup``, and files under ``sys/fs/cgroup``."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups, encoding="utf-8")
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


VERSION_2 = "0::/\n"
VERSION_1 = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"


def test_a_container_of_version_2(tmp_path: Path) -> None:
    files = {
        "memory.max": str(6 * GIB),
        "memory.current": str(3 * GIB),
        "memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
        "cpu.max": "150000 100000\n",
    }
    found = container_limits(machine(tmp_path, VERSION_2, files))
    assert found.cpus == 1.5
    assert found.memory_gib == 4.0  # files that are kept can be given back


def test_a_container_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/docker/abc/memory.limit_in_bytes": str(8 * GIB),
        "memory/docker/abc/memory.usage_in_bytes": str(2 * GIB),
        "memory/docker/abc/memory.stat": f"total_inactive_file {GIB}\n",
        "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
    }
    found = container_limits(machine(tmp_path, VERSION_1, files))
    assert (found.cpus, found.memory_gib) == (2.0, 7.0)


def test_a_container_of_version_1_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    found = container_limits(machine(tmp_path, VERSION_1, files))
    assert (found.cpus, found.memory_gib) == (1.0, 4.0)


def test_the_tightest_of_nested_groups_holds(tmp_path: Path) -> None:
    files = {
        "outer/memory.max": str(2 * GIB),
        "outer/cpu.max": "max 100000",
        "outer/inner/memory.max": "max",
        "outer/inner/memory.high": str(3 * GIB),
        "outer/inner/cpu.max": "50000 100000",
    }
    found = container_limits(machine(tmp_path, "0::/outer/inner\n", files))
    assert (found.cpus, found.memory_gib) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        pytest.param(VERSION_2, {"memory.max": "max", "cpu.max": "max 100000"}, id="version-2"),
        pytest.param(
            VERSION_1,
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            id="version-1",
        ),
        pytest.param(VERSION_2, {}, id="nothing-mounted"),
    ],
)
def test_without_limits_the_machine_counts(
    tmp_path: Path, groups: str, files: Mapping[str, str]
) -> None:
    found = container_limits(machine(tmp_path, groups, files))
    assert (found.cpus, found.memory_gib) == (None, None)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param(VERSION_2, {}, None, id="no-control-group"),
        pytest.param(
            VERSION_2, {"memory.max": "max\n", "memory.current": "7\n"}, None, id="no-limit"
        ),
        pytest.param(VERSION_2, {"memory.max": "100\n", "memory.current": "70\n"}, 30, id="limit"),
        pytest.param(
            VERSION_2,
            {
                "memory.max": "100\n",
                "memory.current": "70\n",
                "memory.stat": "anon 50\ninactive_file 20\n",
            },
            50,
            id="cached-files-count-as-free",
        ),
        pytest.param(
            VERSION_2, {"memory.max": "100\n", "memory.current": "170\n"}, 0, id="over-the-limit"
        ),
        pytest.param(
            VERSION_1,
            {"memory/memory.limit_in_bytes": "100\n", "memory/memory.usage_in_bytes": "60\n"},
            40,
            id="version-1",
        ),
    ],
)
def test_what_a_limit_leaves_in_bytes(
    tmp_path: Path, groups: str, files: Mapping[str, str], expected: int | None
) -> None:
    found = container_limits(machine(tmp_path, groups, files)).memory_gib
    assert found == (None if expected is None else expected / GIB)


def test_the_fewer_cores_and_the_less_memory_count(tmp_path: Path) -> None:
    files = {"memory.max": str(GIB // 2), "cpu.max": "50000 100000"}
    root = machine(tmp_path, VERSION_2, files)
    assert free_cpus(root) == 0.5
    assert free_memory_gib(root) == 0.5


def test_kills_for_want_of_memory_are_counted_by_the_kernel(tmp_path: Path) -> None:
    root = machine(tmp_path, VERSION_2, {"memory.events": "low 0\noom 3\noom_kill 2\n"})
    assert oom_kills(root) == 2


def test_kills_outside_containers_are_counted_by_the_machine(tmp_path: Path) -> None:
    root = machine(tmp_path, VERSION_2, {})
    (root / "proc/vmstat").write_text("pgfault 12\noom_kill 7\n", encoding="utf-8")
    assert oom_kills(root) == 7


GPUS = [Gpu(index=i, uuid=f"GPU-{name}", memory_gib=80.0) for i, name in enumerate("abcd")]


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        pytest.param({}, [0, 1, 2, 3], id="absent-shows-all"),
        pytest.param({"CUDA_VISIBLE_DEVICES": ""}, [], id="empty-shows-none"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "-1"}, [], id="minus-one-shows-none"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "2,3"}, [2, 3], id="numbers"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-a"}, [2, 0], id="names"),
        pytest.param(
            {"CUDA_VISIBLE_DEVICES": "1,9,2"}, [1], id="up-to-the-first-that-is-not-there"
        ),
        pytest.param({"CUDA_VISIBLE_DEVICES": "MIG-x"}, [-1], id="part-of-a-gpu"),
    ],
)
def test_the_environment_says_which_gpus_count(
    environment: Mapping[str, str], shown: list[int]
) -> None:
    assert [gpu.index for gpu in visible_gpus(environment, GPUS)] == shown


def test_a_name_counts_as_one_gpu_where_the_drivers_tool_is_absent() -> None:
    nameless = [Gpu(index=0), Gpu(index=1)]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-c"}, nameless) == [
        Gpu(index=-1, uuid="GPU-c")
    ]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-x"}, GPUS) == []


def devices(folder: Path, *names: str) -> Path:
    """A folder that stands for ``/``, with these devices."""
    (folder / "dev").mkdir()
    for name in names:
        (folder / "dev" / name).touch()
    return folder


def tool(folder: Path, script: str) -> Path:
    """A folder with an ``nvidia-smi`` that does this."""
    path = folder / "tools" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path.parent


LISTED = "echo '0, GPU-a, 24576'"


@pytest.mark.parametrize(
    ("names", "script", "expected"),
    [
        pytest.param(["nvidia0"], LISTED, [Gpu(index=0, uuid="GPU-a", memory_gib=24.0)], id="listed"),
        pytest.param(["nvidia2"], "exit 9", [Gpu(index=0)], id="a-container-was-given-the-third"),
        pytest.param(["nvidia0", "nvidia1"], "echo No devices", [Gpu(index=0), Gpu(index=1)], id="no-lines"),
        pytest.param(["dxg"], LISTED, [Gpu(index=0, uuid="GPU-a", memory_gib=24.0)], id="linux-on-windows"),
        pytest.param(["dxg"], "exit 9", [], id="linux-on-windows-without-gpu"),
        pytest.param(["nvidiactl"], LISTED, [], id="no-device"),
    ],
)  # fmt: skip
def test_gpus_are_counted_as_cuda_counts_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    script: str,
    expected: list[Gpu],
) -> None:
    monkeypatch.setenv("PATH", str(tool(tmp_path, script)))
    assert installed_gpus(devices(tmp_path, *names)) == expected


def test_a_gpu_that_is_lost_does_not_hide_the_others() -> None:
    text = "Unable to determine the device handle for GPU0: Unknown Error\n1, GPU-b, 81559\n"
    assert [gpu.index for gpu in listed_gpus(text)] == [1]


def test_what_the_environment_hides_is_said() -> None:
    assert shown_in_words(GPUS, {}) == ""
    assert shown_in_words(GPUS, {"CUDA_VISIBLE_DEVICES": "3,2,1,0"}) == ""
    said = shown_in_words(GPUS, {"CUDA_VISIBLE_DEVICES": "2,7"})
    assert said == "CUDA_VISIBLE_DEVICES='2,7' shows 1 of 4"


def test_the_tools_lines_are_read_in_gib() -> None:
    text = "0, GPU-a, 81559\n1, GPU-b, [N/A]\n"
    first, second = listed_gpus(text)
    assert first == Gpu(index=0, uuid="GPU-a", memory_gib=81559 / 1024)
    assert second.memory_gib is None


def test_the_processor_is_named_as_linux_says_it(tmp_path: Path) -> None:
    assert processor(tmp_path) == platform.machine()
    (tmp_path / "proc").mkdir()
    text = "processor\t: 0\nmodel name\t: A CPU @ 2: fast\nflags\t\t: fpu\n\n" * 2
    (tmp_path / "proc/cpuinfo").write_text(text, encoding="utf-8")
    assert processor(tmp_path) == "A CPU @ 2: fast"
