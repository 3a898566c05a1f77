"""What happens in a sweep, as plain events: to the event log, and to whoever watches."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from core.measuring.selection import Probe
from core.store.durable import append_line
from core.text.redaction import redacted
from tuning.objective import Outcome
from tuning.records import now


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The shared work is done: model, data, baselines, and Fisher where it is needed.

    Attributes:
        baseline: Levels before unlearning, on the probe split.
        seconds: How long it took.
        limited: What is constrained or guarded, now that the baseline has said what ``auto`` is.
        scale: What it said, and why; empty if there was no ``auto``.
    """

    baseline: dict[str, float]
    seconds: float
    limited: tuple[str, ...]
    scale: str = ""


@dataclass(frozen=True, kw_only=True)
class TrialBegan:
    """A trial was handed to Ray."""

    number: int
    attempt: int
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialResumed:
    """An attempt goes on from a checkpoint of an earlier one, made after ``step``."""

    number: int
    attempt: int
    step: int


@dataclass(frozen=True, kw_only=True)
class TrialProbed:
    """A trial reported a probe."""

    number: int
    probe: Probe


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial was told to the ledger."""

    number: int
    outcome: Outcome
    adopted: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialBroke:
    """An attempt broke; ``is_final`` if there will be no other."""

    number: int
    attempt: int
    reason: str
    is_final: bool


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Trials are done; finalists are measured on the reporting split."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something that a person should know and that stops nothing."""

    text: str


Event = (
    Warned
    | Prepared
    | TrialBegan
    | TrialResumed
    | TrialProbed
    | TrialEnded
    | TrialBroke
    | Reporting
)


class Watcher(Protocol):
    """Shows a sweep to a person."""

    def show(self, event: Event) -> None:
        """Take an event."""
        ...


class Silent:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        """Ignore it."""


class EventLog:
    """Writes events to ``events.jsonl`` and passes them on."""

    def __init__(self, path: Path, watcher: Watcher) -> None:
        """Log to ``path``, then show to ``watcher``."""
        self._path, self._watcher = path, watcher

    def emit(self, event: Event) -> None:
        """Log and show an event; nobody decides by the log, so the disk is not waited for."""
        if isinstance(event, Warned):
            event = replace(event, text=redacted(event.text))
        elif isinstance(event, TrialBroke):
            event = replace(event, reason=redacted(event.reason))
        line = {"time": now(), "event": type(event).__name__, **asdict(event)}
        append_line(self._path, line, synced=False)
        self._watcher.show(event)
