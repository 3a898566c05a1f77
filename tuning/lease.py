"""Who drives a run: a row beside its study, by which a later driver fences off an earlier one, on whatever host.

The lock of the run folder keeps two drivers of one host apart; this does so across hosts. Every transaction of the
ledger writes the row under the driver's own token, so that a driver that was taken over cannot write any more, however
long it slept. No host's clock decides: that a holder is gone is known by the server's clock, or, on a file, which has
none, by watching that it gives no sign of life; and on the holder's own machine by its process.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Connection, Engine, Float, Integer, String, Table, func

from core.errors import EndedError, UserError
from tuning.holder import Holder
from tuning.records import LEASES_TABLE

LEASES = Table(
    LEASES_TABLE,
    sqlalchemy.MetaData(),
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("token", String(32), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("machine", String(255), nullable=False),
    Column("started", String(32), nullable=False),
    Column("since", String(32), nullable=False),
    Column("expires", Float(precision=53)),
    Column("renewals", Integer, nullable=False),
    Column("changes", Integer, nullable=False),
)
"""A row for each study. An empty token: nobody drives it. ``expires`` is by the server's clock; absent in a file."""

_NOBODY: Mapping[str, Any] = {"host": "", "pid": 0, "machine": "", "started": "", "since": ""}


def make_table(connection: Connection) -> None:
    """The table of leases, where there is none yet."""
    connection.execute(sqlalchemy.schema.CreateTable(LEASES, if_not_exists=True))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a lease.

    Attributes:
        renew_s: Between two signs of life of a driver that has nothing to write.
        expires_s: Without one, until a driver of another host counts as gone.
        look_s: Between two looks for one, where there is no common clock.
    """

    renew_s: float = 10.0
    expires_s: float = 45.0
    look_s: float = 1.0


class TakenOverError(EndedError):
    """Another driver took the run over; this one may not write any more.

    Args:
        where: The run folder.
        holder: The other driver; ``None`` if it has ended already.
    """

    def __init__(self, where: str, holder: Holder | None) -> None:
        """Say who, and that nothing is lost."""
        who = "" if holder is None else f": {holder}"
        super().__init__(
            f"{where}: another driver took this run over{who}; this one ended its trials and has written nothing "
            f"since. Nothing finished is lost: `unlearn-tune status {where}` shows how it goes on there"
        )


@dataclass(frozen=True)
class _Row:
    """A lease as it was read."""

    token: str
    renewals: int
    changes: int
    is_expired: bool
    holder: Holder

    @property
    def is_free(self) -> bool:
        return not self.token or self.is_expired or self.holder.is_dead


class Lease:
    """The right to drive a run, as one driver holds it."""

    def __init__(
        self, engine: Engine, study_id: int, *, where: str, timing: Timing | None = None
    ) -> None:
        """Nothing is taken yet.

        Args:
            engine: The database; for this alone, so that a sign of life waits for nothing.
            study_id: Of the run's study.
            where: The run folder, for messages.
            timing: How often it is renewed.
        """
        self._engine, self._study_id, self._where = engine, study_id, where
        self._timing = timing or Timing()
        self._token = secrets.token_hex(16)
        self._n_changes = 0
        self._lost: TakenOverError | None = None

    def take(
        self, *, takeover: bool = False, tell: Callable[[str], None] = lambda _: None
    ) -> Holder | None:
        """Become the driver; of one's own run once more, where another file took the place of the ledger.

        Args:
            takeover: Also from one that lives; it ends at its next write.
            tell: Shown why it takes a while.

        Returns:
            Whom it was taken from, if that driver may still live.

        Raises:
            UserError: If another driver holds the run.
        """
        with self._engine.begin() as connection:
            make_table(connection)
        with suppress(sqlalchemy.exc.IntegrityError), self._engine.begin() as connection:
            first = {"study_id": self._study_id, "token": "", "renewals": 0, "changes": 0}
            connection.execute(sqlalchemy.insert(LEASES).values(**first, **_NOBODY))
        while True:
            row = self._read()
            if not (row.is_free or row.token == self._token or takeover):
                self._wait_for_a_sign(row, tell)
            if self._taken(row, whatever=takeover):
                return row.holder if takeover and not row.is_free else None

    def _wait_for_a_sign(self, before: _Row, tell: Callable[[str], None]) -> None:
        """Return if the holder of a lease in a file, which has no clock, gives no sign of life; else it is refused."""
        refused = UserError(
            f"{self._where}: another driver holds this run ({before.holder}); wait for it, or stop it; if it cannot be "
            f"reached, take the run over: unlearn-tune resume {self._where} --takeover"
        )
        if self._has_clock:
            raise refused
        wait_s = self._timing.expires_s
        tell(
            f"{before.holder} drove this run and did not end it; looking {wait_s:g} s whether it lives"
        )
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            time.sleep(self._timing.look_s)
            if self._read().renewals != before.renewals:
                raise refused

    def claim(self, connection: Connection) -> None:
        """Within a transaction of the ledger: make it one of this driver's, or refuse it.

        The changes are counted with it, so that after a connection broke in the middle of a commit it is known
        whether the change was made.

        Raises:
            TakenOverError: If another driver took the run over.
        """
        signed = self._signed().values(changes=self._n_changes + 1)
        if not connection.execute(signed).rowcount:
            raise self._taken_over(_read(connection, self._study_id))

    def count(self) -> None:
        """A change that was claimed is committed."""
        self._n_changes += 1

    def was_made(self) -> bool:
        """Whether the change that was claimed last, and not counted, is committed all the same.

        Raises:
            TakenOverError: If another driver took the run over.
        """
        row = self._read()
        if row.token != self._token:
            raise self._taken_over(row)
        return row.changes > self._n_changes

    def refuse_lost(self) -> None:
        """Raise what :meth:`held` noticed.

        Raises:
            TakenOverError: If another driver took the run over.
        """
        if self._lost is not None:
            raise self._lost

    @contextmanager
    def held(self, on_lost: Callable[[], None]) -> Iterator[None]:
        """Within the context a thread gives signs of life; then the lease is given back.

        Args:
            on_lost: Called once, from the thread, when another driver took the run over.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._renew, args=(over, on_lost), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.release()

    def release(self) -> None:
        """Let the next driver begin at once; without an answer of the database it finds out itself."""
        with suppress(sqlalchemy.exc.SQLAlchemyError, OSError), self._engine.begin() as connection:
            connection.execute(self._own().values(token="", expires=sqlalchemy.null()))
        self._engine.dispose()

    def _renew(self, over: threading.Event, on_lost: Callable[[], None]) -> None:
        """The thread: its waiting is by the monotonic clock, and a database that is away for a while is no loss."""
        while not over.wait(self._timing.renew_s):
            with suppress(sqlalchemy.exc.SQLAlchemyError, OSError):
                with self._engine.begin() as connection:
                    if connection.execute(self._signed()).rowcount:
                        continue
                    self._taken_over(_read(connection, self._study_id))
                on_lost()
                return

    @property
    def _has_clock(self) -> bool:
        return self._engine.name != "sqlite"

    def _expiry(self) -> Any:
        return _clock() + self._timing.expires_s if self._has_clock else sqlalchemy.null()

    def _own(self) -> sqlalchemy.Update:
        mine = (LEASES.c.study_id == self._study_id) & (LEASES.c.token == self._token)
        return sqlalchemy.update(LEASES).where(mine)

    def _signed(self) -> sqlalchemy.Update:
        return self._own().values(renewals=LEASES.c.renewals + 1, expires=self._expiry())

    def _read(self) -> _Row:
        with self._engine.begin() as connection:
            return _read(connection, self._study_id)

    def _taken(self, before: _Row, *, whatever: bool) -> bool:
        """Take a lease that is still as it was read; a sign of life since then keeps it, unless ``whatever``."""
        unchanged = LEASES.c.token == before.token
        if not whatever:
            unchanged &= LEASES.c.renewals == before.renewals
        changed = (
            sqlalchemy.update(LEASES)
            .where((LEASES.c.study_id == self._study_id) & unchanged)
            .values(
                **asdict(Holder.of_this_process()),
                token=self._token,
                expires=self._expiry(),
                renewals=LEASES.c.renewals + 1,
                changes=0,
            )
        )
        with self._engine.begin() as connection:
            return connection.execute(changed).rowcount == 1

    def _taken_over(self, row: _Row) -> TakenOverError:
        self._lost = TakenOverError(self._where, row.holder if row.token else None)
        return self._lost


def _clock() -> Any:
    """The server's time in seconds since the epoch, now and not when the transaction began."""
    return sqlalchemy.cast(sqlalchemy.extract("epoch", func.clock_timestamp()), Float(precision=53))


def _read(connection: Connection, study_id: int) -> _Row:
    has_clock = connection.engine.name != "sqlite"
    expired = LEASES.c.expires < _clock() if has_clock else sqlalchemy.false()
    query = sqlalchemy.select(LEASES, expired.label("is_expired"))
    found = connection.execute(query.where(LEASES.c.study_id == study_id)).one()
    holder = Holder(**{name: getattr(found, name) for name in _NOBODY})
    return _Row(found.token, found.renewals, found.changes, bool(found.is_expired), holder)
