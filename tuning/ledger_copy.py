"""A copy of a server's study in the run folder, in the form of a ledger that is a file.

Whoever reads a run reads the copy: without the server, its password or its driver, also on another machine. The
driver brings it up to date after each change; one that was killed in between leaves it one change behind, and the next
driver makes it anew.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import Connection, Table

from core.errors import UserError
from tuning.database import Place, let_go, open_file, released
from tuning.records import put_ledger

_TABLES = BaseModel.metadata.sorted_tables
_OF_TRIALS: Sequence[Table] = [t for t in _TABLES if "trial_id" in t.columns]
_OF_STUDY: Sequence[Table] = [t for t in _TABLES if "study_id" in t.columns and t not in _OF_TRIALS]
_MARK = Table(
    "copy_of",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("url", sqlalchemy.Text),
    sqlalchemy.Column("study", sqlalchemy.Text),
)
"""Tells a copy from a ledger."""


class LedgerCopy:
    """The copy, as the driver keeps it."""

    def __init__(self, place: Place, server: RDBStorage, study_id: int, path: Path) -> None:
        """Make it anew, whole or not at all.

        Args:
            place: What is copied.
            server: Its database.
            study_id: Of the study there.
            path: The copy.
        """
        self._study_id = study_id
        put_ledger(path, lambda new: self._make(new, place, server))
        self._file = open_file(path)

    def _make(self, path: Path, place: Place, server: RDBStorage) -> None:
        with released(open_file(path)) as storage:
            self._fill(storage, place, server)

    def _fill(self, storage: RDBStorage, place: Place, server: RDBStorage) -> None:
        trials = BaseModel.metadata.tables["trials"]
        own = sqlalchemy.select(trials.c.trial_id).where(trials.c.study_id == self._study_id)
        at_a_moment = server.engine.execution_options(isolation_level="REPEATABLE READ")
        with at_a_moment.connect() as found, storage.engine.begin() as made:
            for table in (*_OF_STUDY, *_OF_TRIALS):
                is_own = (
                    table.c.study_id == self._study_id
                    if "study_id" in table.columns
                    else table.c.trial_id.in_(own)
                )
                _insert(made, table, found.execute(sqlalchemy.select(table).where(is_own)))
            _MARK.create(made)
            made.execute(sqlalchemy.insert(_MARK).values(place.plain()))

    def close(self) -> None:
        """Let go of the file."""
        let_go(self._file)

    def bring_trial(self, server: RDBStorage, trial_id: int) -> None:
        """Copy a trial as it is now."""
        self._bring(server, _OF_TRIALS, "trial_id", trial_id)

    def bring_notes(self, server: RDBStorage) -> None:
        """Copy what is noted of the study as a whole."""
        self._bring(
            server,
            [t for t in _OF_STUDY if t.name.endswith("attributes")],
            "study_id",
            self._study_id,
        )

    def _bring(self, server: RDBStorage, tables: Sequence[Table], key: str, value: int) -> None:
        with server.engine.connect() as found:
            rows = [
                (t, found.execute(sqlalchemy.select(t).where(t.c[key] == value)).all())
                for t in tables
            ]
        with self._file.engine.begin() as made:
            for table, _ in reversed(rows):
                made.execute(sqlalchemy.delete(table).where(table.c[key] == value))
            for table, new in rows:
                _insert(made, table, new)


def _insert(
    made: Connection, table: Table, rows: Iterable[sqlalchemy.Row[tuple[object, ...]]]
) -> None:
    new = [dict(row._mapping) for row in rows]
    if new:
        made.execute(sqlalchemy.insert(table), new)


def refuse_copy(file: RDBStorage, path: Path) -> None:
    """Refuse to drive a run by a copy of its ledger.

    Raises:
        UserError: If the file is one.
    """
    if not sqlalchemy.inspect(file.engine).has_table(_MARK.name):
        return
    with file.engine.connect() as connection:
        url, study = connection.execute(sqlalchemy.select(_MARK)).one()
    raise UserError(
        f"{path}: this is a copy for readers; the ledger is the study {study} at {url}, and only there is it written"
    )
