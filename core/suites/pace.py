"""How far a suite is, in a line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 10.0
"""A line is told after at least this many seconds without one: shorter work says nothing."""


def _nobody(line: str) -> None:
    """Hears nothing."""


class Pace:
    """Tells how far the work of a suite is.

    Attributes:
        suite: The suite that runs; stands before every line.
    """

    def __init__(
        self,
        tell: Callable[[str], None] = _nobody,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tell`` takes a line; ``clock`` gives seconds."""
        self.suite = ""
        self._tell, self._every_s, self._clock = tell, every_s, clock
        self._told_at = clock()

    @contextmanager
    def stage(self, what: str, n: int, *, of: str) -> Iterator[Callable[[int], None]]:
        """A part of the work, with what is called for every few rows that are done.

        Args:
            what: What is done with rows, such as ``rows read``.
            n: Rows of the whole stage.
            of: The model that they are given to.
        """
        began, so_far = self._clock(), 0

        def done(more: int) -> None:
            nonlocal so_far
            so_far += more
            now = self._clock()
            if now - self._told_at < self._every_s or so_far >= n:
                return
            self._told_at = now
            left_s = (now - began) / so_far * (n - so_far)
            self._tell(
                f"suite {self.suite}: {of}: {so_far} of {n} {what}, about {left_s:.0f} s for the others"
            )

        yield done
