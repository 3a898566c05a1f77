"""Where the driver keeps a run: in its folder alone, which all nodes share, or in a storage, too."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from core.store.checkpoints import CHECKPOINTS
from core.store.durable import commit
from tuning.failures import FAILURE_FILE
from tuning.records import attempt_folder
from tuning.resuming import earlier_attempts
from tuning.storage.backup import Backup
from tuning.storage.claims import DRIVERS, Claims
from tuning.storage.home import Home
from tuning.storage.patience import Patience
from tuning.storage.snapshots import MANIFEST, fetch
from tuning.storage.store import RANK_PATIENCE_S, AbsentError, Store


class Keeper(Protocol):
    """What a driver does so that nothing of a run is lost with a disk."""

    def home(self, number: int, attempt: int) -> Home:
        """Where an attempt is written and kept."""
        ...

    def kept(self, number: int, attempt: int) -> Home:
        """Where an attempt that ended is kept."""
        ...

    def collect(self, number: int, attempt: int) -> None:
        """Bring what an attempt's ranks committed into the run folder."""
        ...

    def promise(self, *files: str) -> int:
        """Have the ledger as it is now, and files of the run folder, kept as soon as may be; returns a number."""
        ...

    def is_kept(self, promise: int) -> bool:
        """Whether a promise is fulfilled."""
        ...

    def secure(self, *files: str, unless: Callable[[], bool] = lambda: False) -> bool:
        """Return when the same is kept, or ``unless`` says that nobody waits for it any more: then ``False``."""
        ...


class InPlace:
    """The run folder is all there is."""

    def __init__(self, run_dir: Path) -> None:
        """Keep it there."""
        self._run_dir = run_dir.resolve()  # Tune changes directories

    def home(self, number: int, attempt: int) -> Home:
        """The attempt's folder, on every node."""
        before = earlier_attempts(self._run_dir, number, attempt)
        return Home(
            folder=self._run_dir / attempt_folder(number, attempt),
            earlier={folder.name: None for folder in before},
        )

    def kept(self, number: int, attempt: int) -> Home:
        """The same."""
        return self.home(number, attempt)

    def collect(self, number: int, attempt: int) -> None:
        """It is there."""

    def promise(self, *files: str) -> int:
        """Fulfilled already."""
        return 0

    def is_kept(self, promise: int) -> bool:
        """It is."""
        return True

    def secure(self, *files: str, unless: Callable[[], bool] = lambda: False) -> bool:
        """It is."""
        return True


class InStorage:
    """The run folder is the driver's working copy; workers commit to the storage."""

    def __init__(self, claims: Claims, claim: str, run_dir: Path, backup: Backup) -> None:
        """Keep it there.

        Args:
            claims: Those on the run.
            claim: This driver's.
            run_dir: Its folder.
            backup: Takes the driver's own files there.
        """
        self._claims, self._claim, self._backup = claims, claim, backup
        self._claims_before = [name for name in claims.names() if name <= claim]
        self._run_dir = run_dir.resolve()
        self._places: dict[tuple[int, int], Store] = {}

    @property
    def store(self) -> Store:
        """The run's place in the storage."""
        return self._claims.store

    def home(self, number: int, attempt: int) -> Home:
        """Scratch on the first rank's node, and a place below this driver's claim."""
        store = self._claims.of(self._claim).at(attempt_folder(number, attempt))
        self._places[number, attempt] = store
        before = earlier_attempts(self._run_dir, number, attempt)
        found = {folder.name: self._place(number, n) for n, folder in enumerate(before, start=1)}
        return Home(
            folder=self._run_dir / attempt_folder(number, attempt),
            store=_for_ranks(store),
            earlier={name: _for_ranks(s) for name, s in found.items() if s is not None},
        )

    def kept(self, number: int, attempt: int) -> Home:
        """Where the last driver that began it had it kept."""
        folder, store = (
            self._run_dir / attempt_folder(number, attempt),
            self._place(number, attempt),
        )
        return Home(folder=folder, store=None if store is None else _for_ranks(store))

    def collect(self, number: int, attempt: int) -> None:
        """Bring an attempt, of this driver or one before it, into the run folder, verified.

        Raises:
            StorageError: If the storage does not answer, or what it holds is damaged.
        """
        store = self._place(number, attempt)
        if store is None:
            return
        folder = self._run_dir / attempt_folder(number, attempt)
        fetch(store, folder, without=CHECKPOINTS)
        fetch_word(store, folder / FAILURE_FILE)

    def promise(self, *files: str) -> int:
        """With the next round of the backup."""
        return self._backup.promise(*files)

    def is_kept(self, promise: int) -> bool:
        """Whether that round is over."""
        return self._backup.is_kept(promise)

    def secure(self, *files: str, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait for that round."""
        return self._backup.wait(self._backup.promise(*files), unless=unless)

    def _place(self, number: int, attempt: int) -> Store | None:
        """Where an attempt is: with the last driver that began it."""
        if (number, attempt) not in self._places:
            folder = attempt_folder(number, attempt)
            for claim in reversed(self._claims_before):
                store = self._claims.of(claim).at(folder)
                if store.has(MANIFEST) or store.has(FAILURE_FILE):
                    self._places[number, attempt] = store
                    break
        return self._places.get((number, attempt))


def _for_ranks(store: Store) -> Store:
    """The same place, as it can travel."""
    return replace(store, patience=Patience(seconds=RANK_PATIENCE_S))


def fetch_word(store: Store, path: Path) -> None:
    """Bring a small file of an attempt, unless it is there or there is none."""
    if path.exists():
        return
    try:
        content = store.get(path.name)
    except AbsentError:
        return

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    commit(path, write)


def latest_places(claims: Claims, names: list[str]) -> Mapping[str, Store]:
    """Of all files below the claims on a run, the attempts: folder of each, and its place with its last driver."""
    found: dict[str, Store] = {}
    for name in sorted(names):  # by claim
        drivers, claim, *inner = name.split("/")
        is_attempt = drivers == DRIVERS and len(inner) == 4 and inner[0] == "trials"
        if is_attempt and inner[3] in (MANIFEST, FAILURE_FILE):
            folder = "/".join(inner[:3])
            found[folder] = claims.of(claim).at(folder)
    return found
