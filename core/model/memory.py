"""How much memory is free where a model lies: what is computed at a time is bounded by it."""

from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, what torch has set aside included; of this machine, or this container, on a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_machine_free(), *container_free(_CGROUP)])


def container_free(root: Path) -> list[int]:
    """What a container's limit leaves, from the files of its control group; nothing where there is no limit.

    Memory that only caches files counts as free: it is given back when it is needed.
    """
    for limit, used, unused in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        if not (root / limit).is_file() or not (root / used).is_file():
            continue
        text = (root / limit).read_text(encoding="utf-8").strip()
        if not text.isdecimal():  # "max"
            return []
        taken = int((root / used).read_text(encoding="utf-8"))
        return [max(0, int(text) - taken + _counted(root / limit, unused))]
    return []


def _counted(limit: Path, name: str) -> int:
    """A number of the file ``memory.stat`` beside the limit."""
    stat = limit.with_name("memory.stat")
    lines = stat.read_text(encoding="utf-8").splitlines() if stat.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)


def _machine_free() -> int:
    table = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kib = next(line.split()[1] for line in table if line.startswith("MemAvailable:"))
    return int(kib) * 1024
