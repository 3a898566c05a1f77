"""The commands of a report: what to type next, and what makes the sweep again."""

import shlex
from pathlib import Path
from typing import Final

from tuning.records import TrialRecord
from tuning.run import Run

REPORT_FOLDER: Final = "report"
SWEEP_FILE: Final = "sweep.yaml"
"""The sweep as a file that can be launched again, in the report's folder."""


def commands(run: Run, first: TrialRecord | None) -> list[tuple[str, str]]:
    """Purpose and command of each, from the folder in which the report is written.

    Args:
        run: The run.
        first: Its best trial, if there is one.
    """
    shown = shown_path(run.path)
    again = shlex.quote(f"{run.name}-again")
    file = shown_path(run.path / REPORT_FOLDER / SWEEP_FILE)
    more = run.target + run.spec.budget.trials
    whole = [
        ("run this sweep again", f"unlearn-tune sweep {file} --name {again}"),
        ("try more trials of it", f"unlearn-tune resume {shown} --trials {more}"),
        ("get all trials as JSON", f"unlearn-tune best {shown} --format json"),
        ("write this report again", f"unlearn-tune report {shown}"),
    ]
    if first is None:
        nearest = (run.ranked or list(run.trials))[:1]
        return [
            *(
                (f"look at trial {t.number}", f"unlearn-tune show {shown} {t.number}")
                for t in nearest
            ),
            *whole,
        ]
    return [
        ("look at the best trial", f"unlearn-tune show {shown} {first.number}"),
        (
            "export its adapter and its configuration",
            f"unlearn-tune export {shown} --trial best --out exported",
        ),
        ("train that configuration again", "unlearn-tune train exported/trial.yaml --out again"),
        *whole,
    ]


def shown_path(path: Path) -> str:
    """A path for the command line: relative to the current folder where it lies in it."""
    whole, here = path.resolve(), Path.cwd()
    return shlex.quote(str(whole.relative_to(here) if whole.is_relative_to(here) else whole))
