"""Run by a job on the head: how the runs of a folder stand, as one line of JSON that is found among other lines."""

import json
import sys
from pathlib import Path
from typing import Any

from core.errors import UserError
from tuning.records import LEDGER_FILE
from tuning.results import status_json
from tuning.run import load_run

MARK = "unlearn-tune runs: "
"""How the line begins."""


def states(runs: Path) -> list[dict[str, Any]]:
    """What ``status --json`` says of each run; of one that cannot be read, its name and why."""
    found = []
    for ledger in sorted(runs.glob(f"*/{LEDGER_FILE}")):
        name = ledger.parent.name
        try:
            found.append(status_json(load_run(ledger.parent)))
        except UserError as err:
            found.append({"run": name, "state": "damaged", "problem": str(err)})
    return found


def read_states(log: str) -> list[dict[str, Any]] | None:
    """What a job's log says of runs; ``None`` if it says nothing."""
    for line in log.splitlines():
        _, mark, text = line.partition(MARK)
        if mark:
            found: list[dict[str, Any]] = json.loads(text)
            return found
    return None


if __name__ == "__main__":
    sys.stdout.write(MARK + json.dumps(states(Path(sys.argv[1]))) + "\n")
