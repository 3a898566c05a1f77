"""The driver's own files in the storage: the ledger as it is now, and what stands beside it.

A thread puts them, always the newest, so that the driver does not wait for the storage where it need not. What was
promised meanwhile goes with the next round.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from core.errors import EndedError, UserError, in_a_line
from tuning.records import EVENTS_FILE, LEDGER_FILE, copy_ledger
from tuning.storage.claims import ALIVE, ENDED, Claims
from tuning.storage.store import StorageError, Store

OWN: Final = "driver"
"""Folder of the driver's own files, below its claim."""
LIFE: Final = "life"
ALIVE_S = 30.0
"""Seconds between two signs of life, and between two copies of the event log."""


class Backup:
    """Keeps the driver's files in the storage. One for a driver's life."""

    def __init__(
        self, claims: Claims, claim: str, run_dir: Path, *, tell: Callable[[str], None]
    ) -> None:
        """Nothing is put yet.

        Args:
            claims: Those on the run.
            claim: This driver's.
            run_dir: Its folder.
            tell: Is told, by who asks for a promise, that the storage is waited for.
        """
        self._tell, self._said = tell, SimpleQueue[str]()
        self._hurries = threading.Event()
        patience = replace(
            claims.store.patience,
            tell=self._said.put,
            is_over=self._hurries.is_set,
            sleep=lambda seconds: _wait(self._hurries, seconds),
        )
        self._claims, self._claim = Claims(store=replace(claims.store, patience=patience)), claim
        self._store: Store = self._claims.of(claim)
        self._run_dir = run_dir
        self._changed = threading.Condition()
        self._wanted = self._kept = 0
        self._files: set[str] = set()
        self._ends = False
        self._failed: Exception | None = None
        self._events = (0, float("-inf"))
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def promise(self, *files: str) -> int:
        """Have the ledger as it is now, and files of the run folder, in the storage as soon as may be.

        Returns:
            The number of the promise.
        """
        with self._changed:
            self._wanted += 1
            self._files.update(files)
            self._changed.notify_all()
            return self._wanted

    def is_kept(self, promise: int) -> bool:
        """Whether a promise is fulfilled.

        Raises:
            StorageError: If it never will be: the storage does not take it.
            FencedError: The same, because another driver took the run over.
        """
        self._say()
        with self._changed:
            return self._is_kept(promise)

    def wait(self, promise: int, *, unless: Callable[[], bool]) -> bool:
        """Return when a promise is fulfilled, or ``unless`` says that nobody waits for it any more.

        Raises:
            StorageError: As :meth:`is_kept`.
            FencedError: As :meth:`is_kept`.
        """
        while not self.is_kept(promise):
            if unless():
                return False
            with self._changed:
                self._changed.wait_for(lambda: self._is_over(promise), timeout=0.2)
        return True

    def _say(self) -> None:
        with suppress(Empty):
            while True:
                self._tell(self._said.get_nowait())

    def _is_over(self, promise: int) -> bool:
        return self._kept >= promise or self._failed is not None

    def close(self, *, is_whole: bool) -> None:
        """End, and say so there; what was promised is put first.

        Args:
            is_whole: The driver ended as it should: a storage that does not answer is waited for.
        """
        if not is_whole:
            self._hurries.set()
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join()
        if self._failed is None:
            self._hurries.set()
            with suppress(UserError):
                self._put_events()
                self._store.at(LIFE).put(ENDED, b"{}\n")

    def _is_kept(self, promise: int) -> bool:
        if self._kept >= promise:
            return True
        if self._failed is not None:
            raise self._failed
        return False

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=ALIVE_S)
                if self._ends and self._wanted == self._kept:
                    return
                wanted, is_changed = self._wanted, self._wanted > self._kept
                files, self._files = self._files, set()
            try:
                self._put(sorted(files), is_changed=is_changed)
            except (UserError, EndedError, OSError) as err:
                is_told = isinstance(err, StorageError | EndedError)
                with self._changed:
                    self._failed = err if is_told else StorageError(in_a_line(err), is_final=True)
                    self._changed.notify_all()
                return
            with self._changed:
                self._kept = wanted
                self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._ends or self._wanted > self._kept

    def _put(self, files: list[str], *, is_changed: bool) -> None:
        """Files first, then the ledger that speaks of them, then the question whether that still counts."""
        own = self._store.at(OWN)
        for name in files:
            own.put_file(name, self._run_dir / name)
        if is_changed:
            copied = self._run_dir / f".{LEDGER_FILE}.backup"
            try:
                copy_ledger(self._run_dir / LEDGER_FILE, copied)
                own.put_file(LEDGER_FILE, copied)
            finally:
                copied.unlink(missing_ok=True)
        else:
            self._store.at(LIFE).put(ALIVE, b"{}\n")
        self._put_events()
        self._claims.check(self._claim)

    def _put_events(self) -> None:
        """The event log grows without end, and nobody decides by it: it is put now and then."""
        path = self._run_dir / EVENTS_FILE
        size = path.stat().st_size if path.exists() else 0
        before, at = self._events
        if size != before and (self._ends or time.monotonic() - at >= ALIVE_S):
            self._store.at(OWN).put_file(EVENTS_FILE, path)
            self._events = (size, time.monotonic())


def _wait(hurries: threading.Event, seconds: float) -> None:
    hurries.wait(seconds)
