"""The timeline of a run: which trial each worker was busy with, and the work that stopping early saved."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from tuning.attributes import is_count
from tuning.damage import whole_events
from tuning.plots.reading import ending_of, kind_of, n_by_ending
from tuning.plots.style import Ending
from tuning.run import Run

LONGEST_PAUSE_S: Final = 60.0
"""Longer times in which no trial ran, as between an interruption and its resume, are left out."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """An attempt at a trial, in seconds of the timeline.

    Attributes:
        number: The trial's.
        attempt: Which attempt.
        lane: The worker, from 0.
        begin: When it began.
        end: When it ended; the last probe that is known of one that was killed or goes on.
        ending: Why the trial ended; ``None`` of a broken or unfinished attempt.
    """

    number: int
    attempt: int
    lane: int
    begin: float
    end: float
    ending: Ending | None


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Work that one trial did not do, at its own speed, laid end to end with that of the others."""

    number: int
    ending: Ending
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class TimelineData:
    """Workers over time.

    Attributes:
        spans: Attempts.
        savings: Work that was saved.
        n_pauses: Pauses that are left out.
    """

    spans: tuple[Span, ...]
    savings: tuple[Saving, ...]
    n_pauses: int

    @property
    def n_lanes(self) -> int:
        """Workers."""
        return 1 + max((s.lane for s in self.spans), default=-1)

    @property
    def n_by_ending(self) -> dict[Ending, int]:
        """Attempts of each ending that occurs."""
        return n_by_ending(s.ending for s in self.spans)

    @property
    def saved_s(self) -> float:
        """Seconds of a worker that were saved."""
        return max((s.end for s in self.savings), default=0.0)

    @property
    def busy_s(self) -> float:
        """Seconds that workers were busy, added up."""
        return sum(s.end - s.begin for s in self.spans)


def timeline_data(run: Run) -> TimelineData:
    """Attempts by worker from the event log; empty where a run has none.

    Workers are told apart by time alone: an attempt takes the first that is free. Steps that a stop saved count
    the seconds that a step of that trial took, probes included.
    """
    spans, n_pauses = _without_pauses(_attempts(run))
    lanes: list[float] = []
    placed = []
    for span in spans:
        lane = next((i for i, free in enumerate(lanes) if free <= span.begin), len(lanes))
        lanes[lane : lane + 1] = [span.end]
        placed.append(replace(span, lane=lane))
    return TimelineData(spans=tuple(placed), savings=tuple(_savings(run)), n_pauses=n_pauses)


def _attempts(run: Run) -> list[Span]:
    """Attempts in the order of their beginnings, in seconds since the first."""
    begun: dict[int, Span] = {}
    found: list[Span] = []
    start: float | None = None
    for event in whole_events(run):
        kind, number, moment = event.get("event"), event.get("number"), _moment(event)
        if moment is None or not is_count(number) or number >= len(run.trials):
            continue
        start = moment if start is None else start
        now = moment - start
        if kind == "TrialBegan":
            if number in begun:  # its driver was killed
                found.append(begun.pop(number))
            attempt = event["attempt"] if is_count(event.get("attempt")) else 1
            begun[number] = Span(
                number=number, attempt=attempt, lane=0, begin=now, end=now, ending=None
            )
        elif number in begun:
            span, is_told = begun[number], kind == "TrialEnded"
            ending = ending_of(run.trials[number]) if is_told else None
            end = span.end if event.get("adopted") else now  # told after an interruption
            begun[number] = replace(span, end=end, ending=ending)
            if is_told or kind == "TrialBroke":
                found.append(begun.pop(number))
    return sorted([*found, *begun.values()], key=lambda s: (s.begin, s.number))


def _moment(event: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return None


def _without_pauses(spans: list[Span]) -> tuple[list[Span], int]:
    shift, busy_until, n_pauses = 0.0, 0.0, 0
    found = []
    for span in spans:
        idle = span.begin - busy_until
        if idle > LONGEST_PAUSE_S:
            shift, n_pauses = shift + idle, n_pauses + 1
        busy_until = max(busy_until, span.end)
        found.append(replace(span, begin=span.begin - shift, end=span.end - shift))
    return found, n_pauses


def _savings(run: Run) -> Iterator[Saving]:
    planned, until = run.spec.budget.max_steps, 0.0
    for trial in run.trials:
        if kind_of(trial) in ("running", "failed") or not trial.steps or not trial.duration_s:
            continue
        seconds = max(0, planned - trial.steps) * trial.duration_s / trial.steps
        if seconds > 0.0:
            begin, until = until, until + seconds
            yield Saving(number=trial.number, ending=ending_of(trial), begin=begin, end=until)
