"""Which driver a run in a storage belongs to: the one that claimed it last.

A claim is a file of its own, never overwritten, and the greatest name is the newest. A driver puts only below the
name of its own claim, and believes what it put only if its claim still is the newest *after* that. So no conditional
put is needed: a driver that was taken over can overwrite nothing that its successor reads, and whatever it believed
was there before its successor claimed, and so is read by it. This holds where a listing shows every put that was
answered before it (S3, GCS, MinIO, a local disk; NFS without cached folders).
"""

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Final

from core.errors import EndedError, FileError
from core.store.texts import decoded, parse_json
from tuning.holder import Holder
from tuning.storage.store import AbsentError, StorageError, Store

CLAIMS: Final = "claims"
DRIVERS: Final = "drivers"
ALIVE: Final = "alive.json"
ENDED: Final = "ended.json"


class FencedError(EndedError):
    """Another driver goes on with the run.

    Args:
        place: Of the run.
        who: The other driver.
    """

    def __init__(self, place: str, who: str) -> None:
        """Say who, and what that means."""
        super().__init__(
            f"{place}: another driver took this run over ({who}); this one has stopped, and what it had not yet "
            "acknowledged the other one adopts or repeats. Look at the run where that one is"
        )


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Claims on a run.

    Attributes:
        store: The run's place in the storage.
    """

    store: Store

    def names(self) -> list[str]:
        """All claims, the oldest first."""
        found = self.store.names(CLAIMS)
        return sorted(name.partition("/")[2].removesuffix(".json") for name in found)

    def newest(self) -> str | None:
        """The claim that counts; ``None`` before the first."""
        names = self.names()
        return names[-1] if names else None

    def claim(self) -> str:
        """Claim the run for this process; whoever held it is fenced off from now on.

        Raises:
            FencedError: If another process claimed it at the same time, and later.
        """
        newest = self.newest()
        number = 1 + (int(newest.partition("-")[0]) if newest else 0)
        name = f"{number:06d}-{secrets.token_hex(4)}"
        holder = asdict(Holder.of_this_process())
        self.store.put(f"{CLAIMS}/{name}.json", _json(holder))
        self.check(name)
        return name

    def check(self, name: str) -> None:
        """Go on only if a claim still counts.

        Raises:
            FencedError: If there is a newer one.
            StorageError: If the claim is not there any more.
        """
        names = self.names()
        if name not in names:
            raise StorageError(
                f"{self.store.address}: the claim of this driver, {name}, is not there any more; is another disk, or "
                "none, mounted there now, or was the run deleted?",
                is_final=True,
            )
        if names[-1] != name:
            raise FencedError(self.store.address, str(self.holder(names[-1])))

    def holder(self, name: str) -> Holder:
        """Who made a claim."""
        unknown = Holder(
            host="an unknown machine", pid=0, machine="", started="", since="an unknown time"
        )
        try:
            content = self.store.get(f"{CLAIMS}/{name}.json")
            return Holder(**parse_json(decoded(content, where=name), where=name))
        except (AbsentError, FileError, TypeError):
            return unknown

    def of(self, name: str) -> Store:
        """Where the driver of a claim puts, and its workers do."""
        return self.store.at(DRIVERS, name)

    def silent_s(self, name: str) -> float | None:
        """Seconds, by the storage's clock, since the driver of a claim last put something; ``None`` if it ended."""
        mine = f"asking-{secrets.token_hex(4)}.json"
        self.store.put(f"{CLAIMS}-asked/{mine}", b"{}\n")
        asked = self.store.times(f"{CLAIMS}-asked")[f"{CLAIMS}-asked/{mine}"]
        self.store.delete(f"{CLAIMS}-asked/{mine}")
        put = self.store.times(f"{DRIVERS}/{name}/driver") | self.store.times(
            f"{DRIVERS}/{name}/life"
        )
        if f"{DRIVERS}/{name}/life/{ENDED}" in put:
            return None
        claimed = self.store.times(CLAIMS).get(f"{CLAIMS}/{name}.json", 0.0)
        return max(0.0, asked - max([claimed, *put.values()]))


def _json(value: dict[str, object]) -> bytes:
    return (json.dumps(value) + "\n").encode()
