"""A database server that is away for a while: what it was asked is asked again, with longer and longer pauses."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import optuna
import sqlalchemy

from core.errors import EndedError
from tuning.database import outage

DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What Optuna and SQLAlchemy raise of a database."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0

Answer = TypeVar("Answer")


class LostLedgerError(EndedError):
    """The server did not come back in time; what was asked of it is not done."""


@dataclass(kw_only=True)
class Outages:
    """How outages are met.

    While one lasts the driver waits: trials go on as far as their next probe, which is on their disk before it is
    told, and nothing new begins.

    Attributes:
        where: The run folder, for messages.
        database: The server, without a password.
        tell: Shown that it is waited for, and that it is over.
        is_ending: Whether somebody wants the driver to end.
        tell_after_s: Seconds without a word.
        give_up_after_s: Seconds after which the driver ends.
    """

    where: str
    database: str
    tell: Callable[[str], None] = lambda _: None
    is_ending: Callable[[], bool] = lambda: False
    tell_after_s: float = 5.0
    give_up_after_s: float = 900.0
    _lost: LostLedgerError | None = field(default=None, init=False)

    def waited_out(self, ask: Callable[[], Answer], again: Callable[[], Answer]) -> Answer:
        """The answer of ``ask``; after an outage that of ``again``, which first looks what ``ask`` still did.

        Raises:
            LostLedgerError: If the server does not come back in time, from then on at once.
        """
        if self._lost is not None:
            raise self._lost
        try:
            return ask()
        except DATABASE_ERRORS as err:
            said = outage(err)
            if said is None:
                raise
        return self._wait(said, again)

    def _wait(self, said: str, again: Callable[[], Answer]) -> Answer:
        began, pause_s, is_told = time.monotonic(), _FIRST_PAUSE_S, False
        while True:
            waited_s = time.monotonic() - began
            if waited_s >= self.give_up_after_s or self.is_ending():
                self._lost = LostLedgerError(
                    f"{self.database}: the ledger of {self.where} did not answer for {waited_s:.0f} s ({said}); "
                    "nothing finished is lost: what trials committed to the run folder is adopted. When the server "
                    f"answers again, go on with: unlearn-tune resume {self.where}"
                )
                raise self._lost
            if not is_told and waited_s >= self.tell_after_s:
                is_told = True
                self.tell(
                    f"{self.database}: the ledger does not answer ({said}); the sweep pauses until it does, for "
                    f"{self.give_up_after_s / 60:.0f} minutes at most"
                )
            time.sleep(min(pause_s, self.give_up_after_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                answer = again()
            except DATABASE_ERRORS as err:
                still = outage(err)
                if still is None:
                    raise
                said = still
            else:
                if is_told:
                    self.tell(f"{self.database}: the ledger answers again; the sweep goes on")
                return answer
