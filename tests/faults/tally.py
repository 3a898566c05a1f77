"""What a scenario counted and found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SHOWN = ("driver_kills", "trial_kills", "node_kills", "failed_calls", "other_faults")
"""Kinds of faults, as the table has them."""


@dataclass(kw_only=True)
class Tally:
    """What a scenario did and found. Two parts of one scenario add up.

    Attributes:
        scenario: Its name.
        what: What is broken in it, in words.
        runs: Sweeps that it broke.
        driver_kills: Drivers that were killed; all faults are counted where they were seen to fire.
        trial_kills: Processes of trials that were killed.
        node_kills: Nodes of a cluster that were killed.
        failed_calls: System calls that failed, or were cut in half.
        other_faults: Damaged files, bad values, wrong clocks, second drivers, signals.
        refused: Faults after which a message named what is wrong, instead of going on.
        lost: Acknowledged results that were gone or different at the end.
        twice: Trials that were told again, or changed after they had been told.
        repeated_steps: Steps of attempts that were not the last of their trial.
        problems: What did not hold, in words.
        skipped: Why it could not run here; ``None`` if it ran.
    """

    scenario: str
    what: str = ""
    runs: int = 0
    driver_kills: int = 0
    trial_kills: int = 0
    node_kills: int = 0
    failed_calls: int = 0
    other_faults: int = 0
    refused: int = 0
    lost: int = 0
    twice: int = 0
    repeated_steps: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def n_faults(self) -> int:
        """Faults that fired."""
        return sum(int(getattr(self, kind)) for kind in SHOWN)

    @property
    def holds(self) -> bool:
        """Whether faults fired, and nothing was lost, told twice or otherwise wrong."""
        return bool(self.n_faults and not (self.lost or self.twice or self.problems))

    @property
    def verdict(self) -> str:
        """In a word."""
        return "skipped" if self.skipped else "holds" if self.holds else "BROKEN"

    def add(self, other: Tally) -> None:
        """Count what another part of the scenario counted, too."""
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, int | list):
                setattr(self, name, value + getattr(other, name))
        self.skipped = self.skipped or other.skipped

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Tally:
        """From what :meth:`plain` gave."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"faults": self.n_faults, "verdict": self.verdict}


def table(tallies: Iterable[Tally]) -> list[str]:
    """The tallies as a Markdown table, with a line for all of them."""
    rows = list(tallies)
    whole = Tally(scenario="all")
    for row in rows:
        whole.add(row)
    if any(row.verdict == "BROKEN" for row in rows):
        whole.problems.append("a scenario is broken")
    whole.skipped = None
    kinds = ("driver kills", "trial kills", "node kills", "failed calls", "other faults")
    names = ("scenario", "sweeps", *kinds, "refused", "lost", "twice", "repeated steps", "verdict")
    lines = [" | ".join(("", *names, "")).strip(), "|---|" + "---:|" * (len(names) - 2) + "---|"]
    for row in (*rows, whole):
        counts = (row.runs, *(getattr(row, kind) for kind in SHOWN))
        found = (row.refused, row.lost, row.twice, row.repeated_steps, row.verdict)
        cells = (row.scenario, *counts, *found)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
