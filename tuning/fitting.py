"""How many trials find a place on nodes of different sizes, as Ray places ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.config import Placement


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a node has for ranks."""

    cpus: float
    gpus: float


def ranks_on(room: Room, *, cpus: float, gpus: float) -> int:
    """Ranks that fit on a node. A rank's share of a GPU lies on one GPU: of 0.4, two share one."""
    by_cpus = int(room.cpus / cpus + 1e-9)
    if not gpus:
        return by_cpus
    of_one = int(1 / gpus + 1e-9) if gpus < 1 else 1 / gpus
    return min(by_cpus, int(int(room.gpus) * of_one + 1e-9))


def trials_on(
    rooms: Sequence[Room], *, cpus: float, gpus: float, ranks: int, placement: Placement
) -> int:
    """Trials that fit on nodes at the same time.

    Args:
        rooms: The nodes.
        cpus: Cores of a rank.
        gpus: GPUs of a rank.
        ranks: Ranks of a trial.
        placement: Where the ranks of a trial are put.
    """
    slots = [ranks_on(room, cpus=cpus, gpus=gpus) for room in rooms]
    if placement == "strict_pack":
        return sum(n // ranks for n in slots)
    most = sum(slots) // ranks
    if placement == "strict_spread":
        while most and sum(min(n, most) for n in slots) < most * ranks:
            most -= 1
    return most
