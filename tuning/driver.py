"""A driver as a process: it holds its run, keeps a log, and takes signals."""

import logging
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from core.errors import EndedError, UserError
from core.store.durable import written
from core.store.locks import try_lock
from core.text.redaction import Redacting
from tuning import records
from tuning.dispatcher import Dispatcher
from tuning.events import Warned, Watcher
from tuning.plan import Launch
from tuning.storage.keeping import Keeper
from tuning.storage.recovery import keeping
from tuning.storage.store import StorageError

_LOOK_S = 0.2
"""Between two looks whether a lock is free."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal ended the driver; the run can be resumed.

    Args:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        """Keep the number: the exit status is 128 + it."""
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextmanager
def held_run(run_dir: Path, *, ending_s: float = 0.0) -> Iterator[None]:
    """Hold the run, whose folder is made; one driver of this host at a time.

    Args:
        run_dir: The folder.
        ending_s: Seconds that another driver, which was told to end, may take to do so.

    Raises:
        UserError: If another driver holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / records.LOCK_FILE).open("a+") as file:
        until = time.monotonic() + ending_s
        while not (is_held := try_lock(file)) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        if not is_held:
            file.seek(0)
            holder = file.read().strip()
            if ending_s:
                raise UserError(
                    f"{run_dir}: the run was taken over, but its driver ({holder}) has not ended within {ending_s:g} "
                    f"s; end that process, then go on with: unlearn-tune resume {run_dir}"
                )
            raise UserError(
                f"{run_dir}: another driver holds this run ({holder}); wait for it, or stop it; to go on here instead: "
                f"unlearn-tune resume {run_dir} --takeover"
            )
        with written(run_dir / records.LOCK_FILE):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()} since {records.now()}\n")
            file.flush()
        yield


@contextmanager
def kept_run(
    run_dir: Path, launch: Launch, watcher: Watcher, *, takeover: bool = False
) -> Iterator[Keeper]:
    """Within the context the run, which is held, is kept where it is to be.

    Args:
        run_dir: The folder.
        launch: Names the storage, if any.
        watcher: Shown what is waited for.
        takeover: Fence off the driver of a stored run though it seems to live.

    Raises:
        UserError: If the storage cannot be used, or holds another run.
        EndedError: If it does not answer any more while the run is driven, or another driver took it over.
    """

    def tell(text: str) -> None:
        watcher.show(Warned(text=text))

    is_driven = False
    try:
        with keeping(run_dir, launch.storage, takeover=takeover, tell=tell) as keeper:
            is_driven = True
            yield keeper
    except StorageError as err:
        if not is_driven or not (run_dir / records.LEDGER_FILE).exists():
            raise
        raise EndedError(
            f"{err}. Nothing finished is lost; go on with: unlearn-tune resume {run_dir}"
        ) from err


@contextmanager
def driver_log(run_dir: Path) -> Iterator[None]:
    """Keep the warnings and errors of the driver's process, Ray's included, in ``driver.log``.

    Neither there nor on the screen, where Ray writes them too, has a line a secret in it.
    """
    handler = logging.FileHandler(run_dir / "driver.log", encoding="utf-8")
    handler.setFormatter(Redacting())
    loggers = [logging.getLogger(name) for name in (None, "ray")]  # Ray's does not propagate
    others = {other: other.formatter for logger in loggers for other in logger.handlers}
    for other, formatter in others.items():
        other.setFormatter(Redacting(formatter))
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for other, formatter in others.items():
            other.setFormatter(formatter)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


class Signals:
    """SIGINT and SIGTERM while a driver lives.

    While trials run, the first signal lets them come to their next probe, as long as the sweep's grace, and a second
    one ends the process. At any other time a signal ends what is being done.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._dispatcher: Dispatcher | None = None

    def install(self) -> None:
        """Take SIGINT and SIGTERM."""
        for number in _SIGNALS:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._dispatcher is None:
            raise Interrupted(number)
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received.append(number)
        self._dispatcher.wind_down()

    @property
    def is_received(self) -> bool:
        """Whether one came while trials ran."""
        return bool(self._received)

    @contextmanager
    def handed_to(self, dispatcher: Dispatcher) -> Iterator[None]:
        """Within the context a signal stops ``dispatcher``."""
        self._dispatcher = dispatcher
        try:
            yield
        finally:
            self._dispatcher = None

    def raise_received(self) -> None:
        """Raise what came while trials ran.

        Raises:
            Interrupted: If a signal came.
        """
        if self._received:
            raise Interrupted(self._received[0])


@contextmanager
def signals_taken() -> Iterator[Signals]:
    """Take SIGINT and SIGTERM within the context, and give them back as they were."""
    signals = Signals()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signals.install()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
