"""Events of a driver and its trials, counted, so that a kill can be at exactly the k-th."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import tuning.concluding
import tuning.dispatcher
from core.measuring.history import History
from tuning.events import EventLog
from tuning.ledger import Ledger

KILLED_DRIVER, KILLED_TRIAL = "driver", "trial"
_OF_DRIVER: tuple[tuple[Any, str, str], ...] = (
    (Ledger, "ask", "ask"),
    (Ledger, "begin_attempt", "dispatch"),
    (tuning.dispatcher, "commit_yaml", "commit of the trial's file"),
    (Ledger, "report", "report of a probe"),
    (tuning.concluding, "commit_json", "commit of the result"),
    (Ledger, "finish", "tell"),
    (Ledger, "fail", "tell of a failure"),
    (Ledger, "set_report_metrics", "report of a finalist"),
    (EventLog, "emit", "line of the event log"),
)
_OF_TRIAL: tuple[tuple[Any, str, str], ...] = ((History, "commit", "commit of a probe"),)


@dataclass(kw_only=True)
class Tap:
    """Counts the events of one process, and over all of a driver's; ends the one that a fault is for.

    Attributes:
        count: Gives the number of the next event, over all processes.
        driver: Process of the driver.
        record: File to which every event is written: its number, what it was, whom it killed.
        kill_driver_at: Number of the event, over all processes, at which the driver is killed; 0: at none.
        kill_self_at: Number of the event, of this process, at which it is killed itself; 0: at none.
        outlives: Whether this process goes on when the driver is dead.
    """

    count: Callable[[], int]
    driver: int
    record: Path
    kill_driver_at: int = 0
    kill_self_at: int = 0
    outlives: bool = False
    _own: int = field(default=0, init=False)

    def at(self, event: str) -> None:
        """An event: the process may not outlive it."""
        self._own += 1
        number = self.count()
        kills_self, kills_driver = self.kill_self_at == self._own, self.kill_driver_at == number
        fate = KILLED_DRIVER if kills_driver else KILLED_TRIAL if kills_self else ""
        with self.record.open("a", encoding="utf-8") as file:
            file.write(f"{number}\t{event}\t{fate}\n")
        if kills_self:
            os.kill(os.getpid(), signal.SIGKILL)
        if kills_driver:
            os.kill(self.driver, signal.SIGKILL)
            while not self.outlives:  # a trial ends with its driver
                time.sleep(1.0)

    def on_driver(self) -> None:
        """Count before and after everything that a driver does to its run; for a process of its own."""
        for place in _OF_DRIVER:
            self._put_on(*place)

    def on_trial(self) -> None:
        """Count before and after everything that a trial commits; for a process of its own."""
        for place in _OF_TRIAL:
            self._put_on(*place)

    def _put_on(self, owner: Any, name: str, event: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @wraps(original)
        def tapped(*args: Any, **options: Any) -> Any:
            self.at(f"before {event}")
            result = original(*args, **options)
            self.at(f"after {event}")
            return result

        setattr(owner, name, tapped)
