"""How long a storage that does not answer is waited for, and how often it is asked again."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_FIRST_S, _LONGEST_S = 0.5, 30.0
_WORTH_A_WORD_S = 5.0
"""Seconds of trying after which somebody is told."""


def log_pause(text: str) -> None:
    """Say it in the log of this process."""
    logger.warning("%s", text)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Asks again, ever more rarely, until it works or the time is over.

    Attributes:
        seconds: How long, from the first failure.
        tell: Is told, once for each call, that it waits, and why.
        is_over: Whether nobody wants to wait any longer.
        sleep: Waits.
        clock: Seconds of a clock that never goes back.
    """

    seconds: float
    tell: Callable[[str], None] = log_pause
    is_over: Callable[[], bool] = bool
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def until_done(
        self, call: Callable[[], Found], *, in_vain: Callable[[OSError], Exception]
    ) -> Found:
        """What ``call`` returns, once it does.

        Args:
            call: Asks the storage.
            in_vain: The error for a user, of what was raised.

        Raises:
            StorageError: What ``in_vain`` makes of the last error; at once if it says that it is final.
        """
        began, pause, is_told = self.clock(), _FIRST_S, False
        while True:
            try:
                return call()
            except OSError as err:
                error = in_vain(err)
                waited = self.clock() - began
                is_final = getattr(error, "is_final", False) or self.is_over()
                if is_final or waited >= self.seconds:
                    raise error from err
                if not is_told and waited + pause >= _WORTH_A_WORD_S:
                    is_told = True
                    left = self.seconds - waited
                    self.tell(
                        f"{error}; trying again for up to {left:.0f} s, nothing is lost meanwhile"
                    )
            self.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - so that nodes do not ask in step
            pause = min(2 * pause, _LONGEST_S)
