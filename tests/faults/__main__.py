"""``python -m faults``: run scenarios, print the table, and end with 1 if an invariant is broken."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faults import shim
from faults.tally import Tally, table

ON_RAY = sorted(Path(__file__).with_name("on_ray").glob("[a-z]*s.py"))
"""Scenarios of real sweeps."""
MOST_SHOWN = 20
"""Problems of a scenario that are shown; the file has all."""

LEAST = {"driver_kills": 200, "trial_kills": 20, "node_kills": 5, "failed_calls": 500}
"""Faults that a whole run has."""

MEMORY = Path("/dev/shm")
"""A disk without a disk, where there is one: thousands of runs are made and removed."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="at the same time")
    parser.add_argument(
        "--only", nargs="*", default=[], help="scenarios with one of these words in their names"
    )
    parser.add_argument("--short", action="store_true", help="one case of each scenario")
    parser.add_argument("--ray", action="store_true", help="real sweeps on Ray, too")
    parser.add_argument("--json", type=Path, help="write what was found to this file, too")
    options = parser.parse_args()
    reason = shim.why_not()
    if reason:
        sys.exit(f"skipped: {reason}")
    if not shim.is_preloaded():
        environment = shim.preloading(Path(tempfile.mkdtemp(prefix="faults-")))
        command = [sys.executable, "-m", "faults", *sys.argv[1:]]
        os.execve(sys.executable, command, environment)  # itself, with the library
    tallies = _without_ray(options)
    if options.ray:
        tallies += _on_ray(options.only)
    if options.json:
        rows = [tally.plain() for tally in tallies]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for tally in tallies:
        for problem in tally.problems[:MOST_SHOWN]:
            sys.stderr.write(f"problem: {problem}\n")
    sys.stdout.write("\n".join(table(tallies)) + "\n")
    lacking = too_few(tallies) if options.ray and not (options.only or options.short) else []
    for line in lacking:
        sys.stderr.write(f"problem: {line}\n")
    sys.exit(bool(lacking) or any(tally.verdict == "BROKEN" for tally in tallies))


def too_few(tallies: Sequence[Tally]) -> list[str]:
    """What a whole run was to break, and did not."""
    found = {kind: sum(int(getattr(t, kind)) for t in tallies) for kind in LEAST}
    return [
        f"{kind}: {found[kind]} of at least {n}" for kind, n in LEAST.items() if found[kind] < n
    ]


def _without_ray(options: argparse.Namespace) -> list[Tally]:
    """Scenarios of the local executor, in memory where it can be a disk."""
    from faults.running import run_all

    where = str(MEMORY) if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="faults-", dir=where) as folder:
        return run_all(
            Path(folder), processes=options.processes, only=options.only, is_short=options.short
        )


def _on_ray(only: Sequence[str]) -> list[Tally]:
    """Scenarios of real sweeps, one after the other."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        found = Path(folder) / "found.jsonl"
        found.touch()
        chosen = ["-k", " or ".join(only)] if only else []
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                *map(str, ON_RAY),
                *chosen,
            ],
            env=os.environ | {"FAULTS_FOUND": str(found)},
            stdout=sys.stderr,
            check=False,
        )
        lines = found.read_text(encoding="utf-8").splitlines()
    tallies = [Tally.read(json.loads(line)) for line in lines]
    if ended.returncode and all(tally.verdict != "BROKEN" for tally in tallies):
        problem = f"pytest ended with {ended.returncode}: not every scenario has a row"
        tallies.append(Tally(scenario="Ray: all of them", problems=[problem]))
    return tallies


if __name__ == "__main__":
    main()
