"""What this process may use of its machine: cores, memory and GPUs, within the limits of its container."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_GIB = 2**30
_TOOL_TIMEOUT_S = 20.0
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that says which GPUs a process sees."""
INTERFACES = "GLOO_SOCKET_IFNAME"
"""Environment variable with the network interfaces that ranks on CPUs talk through."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU of the machine, as the driver lists it.

    Attributes:
        index: Number.
        uuid: Its name; empty where the driver's tool is absent.
        memory_gib: Its memory; ``None`` where the driver's tool is absent.
    """

    index: int
    uuid: str = ""
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container leaves to its processes.

    Attributes:
        cpus: Cores by quota; ``None`` without one.
        memory_gib: Memory that is left under the tightest limit; ``None`` without one.
    """

    cpus: float | None
    memory_gib: float | None


def free_cpus(root: Path = Path("/")) -> float:
    """Cores that this process may use: the fewer of its affinity and its container's quota."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota = container_limits(root).cpus
    return allowed if quota is None else min(allowed, quota)


def free_memory_gib(root: Path = Path("/")) -> float:
    """Memory that is left: the less of the machine's and the container's."""
    free = float(psutil.virtual_memory().available) / _GIB
    left = container_limits(root).memory_gib
    return free if left is None else min(free, left)


def unknown_interfaces(environment: Mapping[str, str] | None = None) -> list[str]:
    """Network interfaces that ``GLOO_SOCKET_IFNAME`` names and this machine has not."""
    names = (os.environ if environment is None else environment).get(INTERFACES, "").split(",")
    present = psutil.net_if_addrs()
    return [name for name in names if name and name not in present]


def container_limits(root: Path = Path("/")) -> Limits:
    """Limits of this process's control groups, of version 1 and 2, its own and those that hold it.

    Args:
        root: Where ``proc`` and ``sys`` lie.

    References:
        Linux kernel, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
    """
    cpus, memory = [], []
    for folder in _groups(root, "cpu"):
        cpus += _quota(folder)
    for folder in _groups(root, "memory"):
        memory += _left(folder)
    return Limits(
        cpus=min(cpus, default=None),
        memory_gib=min(memory) / _GIB if memory else None,
    )


def oom_kills(root: Path = Path("/")) -> int:
    """Processes that the kernel has killed for want of memory: in these control groups, else on the machine."""
    counts = [
        int(value)
        for folder in _groups(root, "memory")
        for name in ("memory.events", "memory.oom_control")
        for key, value in _table(folder / name)
        if key == "oom_kill"
    ]
    if counts:
        return max(counts)
    return sum(int(v) for key, v in _table(root / "proc/vmstat") if key == "oom_kill")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, the innermost first.

    A container may see its own group as the root, whatever path the kernel names: folders that do not
    exist are left out.
    """
    mounted = root / "sys/fs/cgroup"
    own = root / "proc/self/cgroup"
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for line in lines or ["0::/"]:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        for top in (mounted / names, mounted / controller) if names else (mounted,):
            inner = top / path.lstrip("/")
            if top.is_dir():
                yield from (p for p in (inner, *inner.parents) if p == top or top in p.parents)
                break


def _quota(folder: Path) -> list[float]:
    """Cores of a group: quota over period."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [
            _text(folder / "cpu.cfs_quota_us").strip() or "max",
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
    quota, period = (*words, "100000")[:2]
    if quota in ("max", "-1") or not period.isdigit() or int(period) == 0:
        return []
    return [int(quota) / int(period)]


def _left(folder: Path) -> list[float]:
    """Bytes that a group may still take; what it keeps of files it can give back."""
    limits = [
        int(text)
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if (text := _text(folder / name).strip()).isdigit() and int(text) < 2**60
    ]
    if not limits:
        return []
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or "0"
    kept = dict(_table(folder / "memory.stat"))
    files = int(kept.get("total_inactive_file", kept.get("inactive_file", "0")))
    return [max(0.0, min(limits) - max(0, int(used) - files))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _table(path: Path) -> list[tuple[str, str]]:
    pairs = (line.split() for line in _text(path).splitlines())
    return [(words[0], words[1]) for words in pairs if len(words) == 2]


def visible_gpus(
    environment: Mapping[str, str] | None = None, found: Sequence[Gpu] | None = None
) -> list[Gpu]:
    """GPUs that ``CUDA_VISIBLE_DEVICES`` shows to this process.

    As CUDA reads it: absent, all; empty, none; numbers, or names of GPUs or their beginnings, up to the
    first that does not exist. A name of a part of a GPU (``MIG-...``), or of a GPU where the driver's tool is
    absent and no name is known, counts as one whose memory is not known.

    Args:
        environment: This process's if absent.
        found: The GPUs of the machine; looked for if absent.
    """
    present = installed_gpus() if found is None else list(found)
    wanted = (os.environ if environment is None else environment).get(VISIBLE)
    if wanted is None:
        return present
    shown: list[Gpu] = []
    for name in (part.strip() for part in wanted.split(",")):
        gpu = _named(name, present)
        if gpu is None or gpu in shown:
            break
        shown.append(gpu)
    return shown


def shown_in_words(found: Sequence[Gpu], environment: Mapping[str, str] | None = None) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` leaves of the machine's GPUs; empty where it shows them all."""
    shown = visible_gpus(environment, found)
    if len(shown) >= len(found):
        return ""
    wanted = (os.environ if environment is None else environment)[VISIBLE]
    return f"{VISIBLE}={wanted!r} shows {len(shown)} of {len(found)}"


def _named(name: str, present: Sequence[Gpu]) -> Gpu | None:
    if name.isdigit():
        return next((gpu for gpu in present if gpu.index == int(name)), None)
    is_nameless = bool(present) and not any(gpu.uuid for gpu in present)
    if name.startswith("MIG-") and present:
        return Gpu(index=-1, uuid=name)
    if name.startswith("GPU-"):
        return next(
            (g for g in present if g.uuid.startswith(name)),
            Gpu(index=-1, uuid=name) if is_nameless else None,
        )
    return None


def installed_gpus(root: Path = Path("/")) -> list[Gpu]:
    """GPUs that the driver lists, with their memory where its tool ``nvidia-smi`` is there. Loads no torch.

    Args:
        root: Where ``dev`` lies. A container that was given the third GPU has a device ``nvidia2`` alone, which is
            number 0 to CUDA; Linux on Windows has no such device, but ``dxg``.
    """
    n_devices = sum(1 for _ in (root / "dev").glob("nvidia[0-9]*"))
    tool = shutil.which("nvidia-smi")
    if tool is not None and (n_devices or (root / "dev/dxg").exists()):
        query = [tool, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
        with suppress(OSError, subprocess.TimeoutExpired):  # a driver that hangs is as none
            done = subprocess.run(
                query, capture_output=True, text=True, check=False, timeout=_TOOL_TIMEOUT_S
            )
            if done.returncode == 0 and (found := listed_gpus(done.stdout)):
                return found
    return [Gpu(index=i) for i in range(n_devices)]


def listed_gpus(text: str) -> list[Gpu]:
    """GPUs from ``nvidia-smi``'s lines ``index, uuid, MiB``; other lines, such as of a GPU that is lost, are none."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdigit():
            size = int(parts[2]) / 1024 if parts[2].isdigit() else None
            found.append(Gpu(index=int(parts[0]), uuid=parts[1], memory_gib=size))
    return found


def processor(root: Path = Path("/")) -> str:
    """The processor's name where Linux says it, else its architecture.

    Args:
        root: Where ``proc`` lies.
    """
    found = dict(line.partition(":")[::2] for line in _text(root / "proc/cpuinfo").splitlines())
    names = {key.strip(): value.strip() for key, value in found.items()}
    return names.get("model name") or platform.machine()
