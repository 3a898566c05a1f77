"""A SQLite file whose writer was killed in a transaction: what takes it back lies beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tuning.records import journal_of

_WRITER = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 5")  # pages go to the disk within the transaction
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE filler (text)")
database.executemany("INSERT INTO filler VALUES (?)", [("x" * 500,)] * 400)
database.execute("UPDATE trials SET state = 'FAIL'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_half_written(ledger: Path) -> None:
    """Kill who writes to a ledger in the middle of a transaction; its journal must not be played into another file."""
    done = subprocess.run([sys.executable, "-c", _WRITER, str(ledger)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert journal_of(ledger).stat().st_size > 512
