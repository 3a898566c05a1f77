"""One driver for a run: the lock of its folder, and the lease beside its study that counts on all hosts."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuning import records
from tuning.config import SweepSpec
from tuning.database import Place, open_server, single_connections, study_id
from tuning.driver import Interrupted, Signals, held_run
from tuning.events import EventLog, Warned, Watcher
from tuning.lease import Lease
from tuning.ledger import Ledger, Server
from tuning.outage import Outages
from tuning.surroundings import ON_A_NETWORK, network_file_system

_ENDING_S = 120.0
"""How long a driver of the same host may take to end its trials after it was taken over."""


@contextmanager
def taken_run(
    run_dir: Path, place: Place | None, *, takeover: bool, tell: Callable[[str], None]
) -> Iterator[Lease]:
    """Hold a run that exists.

    Args:
        run_dir: The run folder.
        place: Where its ledger lies, if not in the folder.
        takeover: Also if another driver lives; it ends at its next write.
        tell: Shown why it takes a while.

    Raises:
        UserError: If another driver holds it.
        TakenOverError: If another driver takes it over meanwhile.
    """
    if not takeover:
        with held_run(run_dir), _leased(run_dir, place, tell=tell) as lease:
            yield lease
        return
    with (
        _leased(run_dir, place, takeover=True, tell=tell) as lease,
        held_run(run_dir, ending_s=_ENDING_S),
    ):
        yield lease


@contextmanager
def begun_run(run_dir: Path, place: Place | None) -> Iterator[Lease]:
    """Hold a run that this driver has just made; its folder is locked already.

    Raises:
        TakenOverError: If another driver takes it over meanwhile.
    """
    with _leased(run_dir, place) as lease:
        yield lease


@contextmanager
def _leased(
    run_dir: Path,
    place: Place | None,
    *,
    takeover: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Lease]:
    at = place or (run_dir / records.LEDGER_FILE).resolve()
    engine = single_connections(at)
    lease = Lease(engine, study_id(engine, place), where=str(run_dir))
    before = lease.take(takeover=takeover, tell=tell)
    if before is not None:
        tell(f"took the run over from {before}, which ends at its next write")
    try:
        with lease.held(_end_this_driver):
            yield lease
    except Interrupted:
        lease.refuse_lost()
        raise


def _end_this_driver() -> None:
    """As SIGTERM does, in whatever the main thread is doing: trials are stopped and nothing is torn."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def ready_for_ledger(run_dir: Path, place: Place | None, watcher: Watcher) -> None:
    """Look at the disk or the server of a ledger, before anything is spent on it.

    Raises:
        UserError: If the server cannot be used.
    """
    if place is not None:
        open_server(place).engine.dispose()
        return
    found = network_file_system(run_dir)
    if found is not None:
        watcher.show(Warned(text=ON_A_NETWORK.format(folder=run_dir, kind=found)))


def opened_ledger(
    run_dir: Path,
    spec: SweepSpec,
    lease: Lease,
    *,
    place: Place | None,
    watcher: Watcher,
    signals: Signals,
) -> Ledger:
    """The ledger of a run that this driver holds.

    Raises:
        UserError: If its server cannot be reached.
    """
    if place is None:
        return Ledger(run_dir, spec, create=False, lease=lease)
    log = EventLog(run_dir / records.EVENTS_FILE, watcher)
    outages = Outages(
        where=str(run_dir),
        database=place.shown,
        tell=lambda text: log.emit(Warned(text=text)),
        is_ending=lambda: signals.is_received,
    )
    server = Server(place=place, outages=outages)
    return Ledger(run_dir, spec, create=False, lease=lease, server=server)
