"""Door to sqlalchemy: the database that holds a ledger, opened, written in whole transactions, and gone for a while.

It is a file of the run folder (SQLite), or a database of a server (PostgreSQL) that holds the studies of many runs. A
server's errors are told apart here: what is an outage is waited for (:mod:`tuning.outage`), all else flies.
"""

import errno
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import optuna
import sqlalchemy
from sqlalchemy import text

from core.errors import UserError, in_a_line
from tuning.lease import make_table
from tuning.surroundings import LEDGER_VARIABLE

Below = TypeVar("Below", bound=BaseException)

EXTRA: Final = 'pip install -e ".[postgres]"'
_EXAMPLE = "postgresql://user@host/database"
_DRIVER = "postgresql+psycopg"
_OPENING_LOCK = 7_352_911  # any number, the same for all that open a database for the first time
_CONNECTION: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "unlearn-tune",
    # a driver that was frozen in a transaction must not keep another one from taking over
    "options": "-c idle_in_transaction_session_timeout=60000",
}
"""How a server is spoken to, where the URL does not say otherwise; times in s, the last two in ms."""
_BUSY_S = 60
"""How long a file that another process writes is waited for."""
_SERVER_AWAY = re.compile("08...|57P0[123]|53...|25006|40001|40P01|55P03")
"""SQLSTATEs after which the same may work later: connection lost, shut down or starting, no room, standby, deadlock."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A study in a database of a server.

    Attributes:
        url: The database; holds a password only if one was given in it.
        study: Name of the study, which no other run has.
    """

    url: sqlalchemy.URL
    study: str

    @property
    def shown(self) -> str:
        """The URL without a password, as it is recorded and told."""
        return _shown(self.url)

    def plain(self) -> dict[str, str]:
        """As the run folder notes it."""
        return {"url": self.shown, "study": self.study}


def new_place(given: str | None, run_name: str) -> Place | None:
    """Where a new run's ledger is to lie: a study named after the run and a random number.

    Args:
        given: URL of a database; the environment's if absent.
        run_name: Name of the run.

    Returns:
        The place; ``None`` for a file of the run folder.

    Raises:
        UserError: If the URL is no database that can hold a ledger.
    """
    found = _given(given)
    if found is None:
        return None
    return Place(url=_parsed(*found), study=f"{run_name}-{secrets.token_hex(6)}")


def noted_place(noted: Mapping[str, str], given: str | None, *, where: str) -> Place | None:
    """Where a run's ledger lies.

    Args:
        noted: What the run folder notes of it.
        given: URL that says anew where the database is, or how to log in; if absent, the environment's, where it
            names the same database.
        where: The run folder, for messages.

    Raises:
        UserError: If a database is given for a run whose ledger is a file, or the URL is none.
    """
    if not noted:
        if given is not None:
            raise UserError(
                f"--ledger: the ledger of {where} is a file in its folder, and stays there; leave --ledger away"
            )
        return None
    url = _parsed(noted["url"], where=f"{where}: ledger")
    found = _given(given)
    if found is not None:
        other = _parsed(*found)
        if given is not None or _shown(other) == _shown(url):
            url = other
    return Place(url=url, study=noted["study"])


def _given(option: str | None) -> tuple[str, str] | None:
    """A URL and who gave it."""
    if option is not None:
        return option, "--ledger"
    variable = os.environ.get(LEDGER_VARIABLE)
    return (variable, LEDGER_VARIABLE) if variable else None


def _parsed(given: str, where: str) -> sqlalchemy.URL:
    """The URL of a database of a PostgreSQL server, to be spoken to through psycopg."""
    hidden = re.sub(r"://[^/]*@", "://***@", given)
    try:
        url = sqlalchemy.make_url(given)
    except (sqlalchemy.exc.ArgumentError, ValueError) as err:
        raise UserError(f"{where}: a URL like {_EXAMPLE} is expected, got {hidden!r}") from err
    if url.drivername not in ("postgresql", _DRIVER):
        raise UserError(
            f"{where}: PostgreSQL is the only server that a ledger can lie on ({_EXAMPLE}), got {hidden!r}; without a "
            "URL the ledger is a file in the run folder"
        )
    if not url.database:
        raise UserError(f"{where}: the URL must name a database ({_EXAMPLE}), got {hidden!r}")
    if {"password", "sslpassword"} & url.query.keys():
        raise UserError(
            f"{where}: a password stands before the host (user:password@host), in PGPASSWORD or in ~/.pgpass; among "
            "the options of the URL it would be recorded"
        )
    return url.set(drivername=_DRIVER)


def _shown(url: sqlalchemy.URL) -> str:
    without = url.set(drivername="postgresql")._replace(password=None)  # which set() leaves in
    return without.render_as_string(hide_password=True)


def look_at_server(url: str) -> str:
    """Whether a database of :data:`~tuning.surroundings.LEDGER_VARIABLE` answers; it is not changed.

    Returns:
        The URL without a password.

    Raises:
        UserError: If it is none, or cannot be reached.
    """
    place = Place(url=_parsed(url, LEDGER_VARIABLE), study="")
    with _opening(place), single_connections(place).connect():
        return place.shown


def open_server(place: Place) -> optuna.storages.RDBStorage:
    """The database of a server; its tables are made where they are absent.

    Raises:
        UserError: If it cannot be reached or used, or its driver is not installed.
    """
    with _opening(place):
        with single_connections(place).begin() as connection:
            # two that open an empty database at once would both make the tables
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _OPENING_LOCK})
            _server_storage(place.url).engine.dispose()
            make_table(connection)
        return reopen_server(place)


@contextmanager
def _opening(place: Place) -> Iterator[None]:
    """Within the context whatever a server or its driver says is about the user's database."""
    try:
        yield
    except ImportError as err:
        raise UserError(
            f"{place.shown}: PostgreSQL is spoken to through psycopg, which is not installed; {EXTRA}"
        ) from err
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as err:
        raise _unopened(place, err) from err  # RuntimeError: Optuna's, of another schema


def _unopened(place: Place, err: Exception) -> UserError:
    said = in_a_line(getattr(err, "orig", None) or err)
    if place.url.password:
        said = said.replace(str(place.url.password), "***")
    return UserError(
        f"{place.shown}: the ledger cannot be opened: {said}; check that the server runs and answers from here, that "
        "the database exists and this user may make tables in it, and the password (in the URL, PGPASSWORD or "
        "~/.pgpass)"
    )


def study_id(engine: sqlalchemy.Engine, place: Place | None) -> int:
    """Number of a place's study in its database, or of the only one of a file.

    Raises:
        UserError: If the server cannot be reached, or has no such study.
    """
    of_file, of_server = (
        "SELECT study_id FROM studies",
        "SELECT study_id FROM studies WHERE study_name = :name",
    )
    query = text(of_file if place is None else of_server)
    try:
        with engine.connect() as connection:
            found = connection.execute(query, {} if place is None else {"name": place.study})
            number: int | None = found.scalar()
    except sqlalchemy.exc.DBAPIError as err:
        if place is None:
            raise
        raise _unopened(place, err) from err
    if number is None:
        raise UserError(
            f"{engine.url.database if place is None else place.shown}: there is no study "
            f"{'' if place is None else place.study}, which the run folder names; give the database that has it with "
            "--ledger"
        )
    return number


def has_study(place: Place) -> bool:
    """Whether a place's database has its study; nothing is made there.

    Raises:
        UserError: If the server cannot be reached.
    """
    query = text("SELECT 1 FROM studies WHERE study_name = :name")
    with _opening(place), single_connections(place).connect() as connection:
        if not sqlalchemy.inspect(connection).has_table("studies"):
            return False
        return connection.execute(query, {"name": place.study}).scalar() is not None


def reopen_server(place: Place) -> optuna.storages.RDBStorage:
    """The database of a server that was opened before; an outage is the database's own error."""
    return _server_storage(place.url, is_known=True)


def _server_storage(url: sqlalchemy.URL, *, is_known: bool = False) -> optuna.storages.RDBStorage:
    options = {"connect_args": _arguments(url), "pool_pre_ping": True}
    whole = url.render_as_string(hide_password=False)
    return optuna.storages.RDBStorage(
        whole,
        engine_kwargs=options,
        skip_compatibility_check=is_known,
        skip_table_creation=is_known,
    )


def _arguments(url: sqlalchemy.URL) -> dict[str, Any]:
    return {name: value for name, value in _CONNECTION.items() if name not in url.query}


def single_connections(at: Place | Path) -> sqlalchemy.Engine:
    """A database, to which each transaction has a connection of its own; a file that is not there is not made."""
    if isinstance(at, Place):
        return sqlalchemy.create_engine(
            at.url, poolclass=sqlalchemy.NullPool, connect_args=_arguments(at.url)
        )

    def connected() -> sqlite3.Connection:
        return sqlite3.connect(f"{at.resolve().as_uri()}?mode=rw", uri=True, timeout=_BUSY_S)

    engine = sqlalchemy.create_engine(
        f"sqlite:///{at}", poolclass=sqlalchemy.NullPool, creator=connected
    )
    sqlalchemy.event.listen(engine, "handle_error", _raise_as_system)
    return engine


def outage(err: BaseException) -> str | None:
    """What a server says that cannot answer now and may later; ``None`` if the error is none of that kind."""
    seen: BaseException | None = err
    while seen is not None:
        if isinstance(seen, sqlalchemy.exc.DBAPIError):
            state = getattr(seen.orig, "sqlstate", None)
            is_connection = isinstance(
                seen, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError
            )
            is_sqlite = isinstance(seen.orig, sqlite3.Error)
            if seen.connection_invalidated or (state is None and is_connection and not is_sqlite):
                return in_a_line(seen.orig or seen)
            if state is not None and _SERVER_AWAY.fullmatch(state):
                return in_a_line(seen.orig or seen)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def at_once(storage: optuna.storages.RDBStorage) -> Iterator[sqlalchemy.Connection]:
    """Within the context all writes are one transaction: one wait for the disk, and a kill leaves all or none.

    Optuna's own transactions become savepoints in it.
    """
    sessions = storage.scoped_session
    storage.remove_session()
    with storage.engine.connect() as connection:
        if storage.engine.name == "sqlite":  # else the first savepoint would commit
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        sessions.configure(bind=connection, join_transaction_mode="create_savepoint")
        try:
            yield connection
            connection.commit()
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as err:
            said = _under(err, OSError) if storage.engine.name == "sqlite" else None
            if said is None:
                raise
            raise said from err
        finally:
            with suppress(sqlalchemy.exc.OperationalError):  # SQLite took all back itself
                storage.remove_session()
            sessions.registry.clear()
            sessions.configure(bind=storage.engine, join_transaction_mode="conditional_savepoint")


def _under(err: BaseException, kind: type[Below]) -> Below | None:
    """The first error of a kind, of those that led to this one; taking back what was written may have failed, too."""
    below: BaseException | None = err
    while below is not None and not isinstance(below, kind):
        below = below.__context__
    return below


_SYSTEM_ERRORS: Mapping[int, int] = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PROTOCOL: errno.ENOLCK,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
"""What SQLite says in a code of its own, and the system in another."""


def _as_system(err: BaseException | None, place: str | None) -> OSError | None:
    """What SQLite says of a disk as the system's own error, so that it is told as any other write's."""
    number = _SYSTEM_ERRORS.get(getattr(err, "sqlite_errorcode", 0) & 0xFF)
    if number is None:
        return None
    return OSError(number, f"{os.strerror(number)} (SQLite: {err})", place)


def _raise_as_system(context: sqlalchemy.engine.ExceptionContext) -> None:
    place = context.engine.url.database if context.engine is not None else None
    said = _as_system(context.original_exception, place)
    if said is not None:
        raise said from context.original_exception


def open_file(path: Path) -> optuna.storages.RDBStorage:
    """A study's file, opened.

    Raises:
        OSError: If the disk does not let it be opened or written.
    """
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": _BUSY_S}}
        )
    except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as err:
        said = _as_system(_under(err, sqlite3.Error), str(path))
        if said is None:
            raise
        raise said from err
    sqlalchemy.event.listen(storage.engine, "handle_error", _raise_as_system)
    return storage


@contextmanager
def released(storage: optuna.storages.RDBStorage) -> Iterator[optuna.storages.RDBStorage]:
    """Within the context a database is used; then, whatever happened, it is let go of."""
    try:
        yield storage
    finally:
        let_go(storage)


@contextmanager
def released_if_refused(storage: optuna.storages.RDBStorage) -> Iterator[None]:
    """Within the context a database is looked at; it is let go of if that fails."""
    with ExitStack() as stack:
        stack.callback(let_go, storage)
        yield
        stack.pop_all()


def let_go(storage: optuna.storages.RDBStorage) -> None:
    """Close all connections; the next use would open new ones."""
    storage.remove_session()
    storage.engine.dispose()
