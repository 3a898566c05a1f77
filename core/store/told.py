"""Whether an attempt at a trial has been told: then nothing more belongs to it.

Who tells a trial leaves :data:`RESULT_FILE` in its attempt's folder. A worker that outlived its driver, or is cut off
from it, may still train; what it wrote then would stand beside a verdict that does not know it.
"""

from pathlib import Path
from typing import Final

RESULT_FILE: Final = "result.json"
"""In the folder of an attempt: what was told of the trial."""


class ToldError(Exception):
    """A worker that goes on with an attempt that was told."""

    def __init__(self, folder: Path) -> None:
        """Name the attempt."""
        super().__init__(f"{folder}: this attempt was told already; nothing more is written to it")


def refuse_told(folder: Path) -> None:
    """Refuse to write to an attempt that was told.

    Raises:
        ToldError: If it was.
    """
    if (folder / RESULT_FILE).exists():
        raise ToldError(folder)
