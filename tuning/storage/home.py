"""Where an attempt at a trial is written, and where it is kept: what a rank knows of the run's storage.

Without a storage both are the run folder, which all nodes share. With one an attempt is written into a scratch folder
of the node that the first rank runs on, and what is new of it goes to the storage before anybody is told of a probe.
"""

import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from core.errors import UserError
from core.store.checkpoints import CHECKPOINTS
from core.store.durable import commit_json, finite
from core.store.locks import try_lock
from tuning.storage.patience import Patience
from tuning.storage.snapshots import Snapshots, fetch
from tuning.storage.store import StorageError, Store

logger = logging.getLogger(__name__)

SCRATCH_VARIABLE: Final = "UNLEARN_TUNE_SCRATCH"
"""Environment variable of a node that names the folder in which attempts are written; TMPDIR if it is not set."""
ADAPTER: Final = "adapter"
"""Folder of an attempt that holds its best adapter, or model."""
_PREFIX: Final = "unlearn-tune-attempt-"
_OLD_S = 3600.0
_SHOWN_WITHIN_S = 60.0
_LAST_WORDS_S = 20.0
"""How long an attempt that broke tries to leave word."""


@dataclass(frozen=True, kw_only=True)
class Home:
    """Of an attempt. Travels to its ranks.

    Attributes:
        folder: In the driver's run folder.
        store: Its place in the storage; ``None`` where all nodes share the run folder.
        earlier: The trial's attempts before this one, by the names of their folders beside this one's, and their places
            in the storage; ``None`` of those that are there.
    """

    folder: Path
    store: Store | None = None
    earlier: Mapping[str, Store | None] = field(default_factory=dict)

    def enter(self) -> "Workplace":
        """A folder of this node to write the attempt into, for the first rank.

        Raises:
            UserError: If this node is to share the run folder, and does not: it may have joined after all others were
                asked.
        """
        held, folder, snapshots = ExitStack(), self.folder, None
        if self.store is None:
            self._refuse_unshared()
        else:
            folder = held.enter_context(_Scratch()) / self.folder.name
            folder.mkdir()
            snapshots = Snapshots(self.store)
        for name, store in self.earlier.items():
            if store is not None:
                fetch(store, folder.with_name(name), only=CHECKPOINTS)
        earlier = tuple(folder.with_name(name) for name in self.earlier)
        return Workplace(folder, snapshots, held, earlier=earlier)

    def _refuse_unshared(self) -> None:
        """The driver has made the attempt's folder; network file systems show what is new after a while."""
        until = time.monotonic() + _SHOWN_WITHIN_S
        while not self.folder.is_dir():
            if time.monotonic() > until:
                raise UserError(
                    f"{self.folder}: this node ({platform.node()}) does not see the run folder; mount it there under "
                    "the same path, or start the sweep with --storage"
                )
            time.sleep(0.5)

    def leave_word(self, name: str, value: Mapping[str, Any]) -> None:
        """Commit a small file of the attempt from any node; a storage that does not take it is only logged."""
        if self.store is None:
            commit_json(self.folder / name, value)
            return
        hasty = replace(self.store, patience=Patience(seconds=_LAST_WORDS_S))
        text = json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
        try:
            hasty.put(name, text.encode())
        except StorageError as err:
            logger.warning("%s", err)


@contextmanager
def adapter_of(home: Home) -> Iterator[Path]:
    """Within the context the adapter that an attempt left is in a folder of this node.

    Raises:
        StorageError: If the storage does not answer, or what it holds is damaged.
    """
    if home.store is None:
        yield home.folder / ADAPTER
        return
    with _Scratch() as scratch:
        fetch(home.store, scratch, only=ADAPTER)
        yield scratch / ADAPTER


class Workplace:
    """Where the first rank of an attempt writes."""

    def __init__(
        self,
        folder: Path,
        snapshots: Snapshots | None,
        held: ExitStack,
        *,
        earlier: tuple[Path, ...] = (),
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: On this node.
            snapshots: Takes the folder to the storage; ``None`` where it is the run folder itself.
            held: What is let go of in the end.
            earlier: Folders of the attempts before this one, with their checkpoints.
        """
        self.folder, self.earlier = folder, earlier
        self._snapshots, self._held = snapshots, held
        self._checkpointed: int | None = None

    def commit(self, *, is_told: bool = True) -> None:
        """Have all that is written so far where the driver, and whoever comes after it, finds it.

        Args:
            is_told: The driver is told of something that is in it; else it is taken there only with a new checkpoint.

        Raises:
            StorageError: If the storage does not take it.
        """
        if self._snapshots is None:
            return
        before, self._checkpointed = self._checkpointed, _changed_at(self.folder / CHECKPOINTS)
        if is_told or self._checkpointed != before:
            self._snapshots.put(self.folder)

    def commit_last(self) -> None:
        """The same once more for an attempt that broke: its log above all."""
        if self._snapshots is not None:
            with suppress(StorageError):
                self._snapshots.hasty(_LAST_WORDS_S).put(self.folder)

    def leave(self) -> None:
        """Remove what is of no more use on this node."""
        self._held.close()


def _changed_at(folder: Path) -> int | None:
    """When a folder last got or lost an entry; ``None`` of none."""
    return folder.stat().st_mtime_ns if folder.is_dir() else None


class _Scratch:
    """A folder of this process's own; what processes that were killed left of theirs goes."""

    def __enter__(self) -> Path:
        """Make it."""
        root = Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())
        _remove_left(root)
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._lock = (self._path / ".lock").open("w")
        try_lock(self._lock)
        return self._path

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.close()


def _remove_left(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            seen = path.lstat()
            if seen.st_uid != os.getuid() or time.time() - seen.st_mtime < _OLD_S:
                continue
            with (path / ".lock").open("rb") as lock:
                if try_lock(lock):
                    shutil.rmtree(path, ignore_errors=True)
