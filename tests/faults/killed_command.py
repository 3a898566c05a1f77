"""``python -m faults.killed_command K RECORD sweep ...``: the command line, killed at its driver's K-th event."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from faults.events import Tap
from tuning import cli


def main() -> None:
    """Entry point; what follows the two arguments is a command of ``unlearn-tune``."""
    killed_at, record, *command = sys.argv[1:]
    tap = Tap(
        count=itertools.count(1).__next__,
        driver=os.getpid(),
        record=Path(record),
        kill_driver_at=int(killed_at),
    )
    tap.on_driver()
    sys.argv = ["unlearn-tune", *command]
    cli.main()


if __name__ == "__main__":
    main()
