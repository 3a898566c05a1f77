"""How much memory is free where a model lies: what is computed at a time is bounded by it."""

import torch

from core.model.machine import free_memory_gib


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, what torch has set aside included; of this machine, or this container, on a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free_memory_gib() * 2**30)
