"""Shows a sweep to a person: a live table on a terminal, plain lines elsewhere. Always on stderr."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core.measuring.selection import Probe
from tuning.config import SweepSpec
from tuning.events import (
    Event,
    Prepared,
    Reporting,
    TrialBegan,
    TrialBroke,
    TrialEnded,
    TrialProbed,
    Warned,
)
from tuning.objective import Outcome
from tuning.results import GUARD_STOPS


def duration(seconds: float | None) -> str:
    """``1 h 05 min``, ``3 min 20 s`` or ``45 s``; a question mark if unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def parameters(params: Mapping[str, Any]) -> str:
    """``learning_rate=3.2e-04 rank=8``: last parts of the names, short numbers."""
    shown = []
    for name, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        shown.append(f"{name.rpartition('.')[2]}={text}")
    return " ".join(shown)


class Progress:
    """Watches a sweep. Use as a context manager."""

    def __init__(self, spec: SweepSpec, *, target: int, concurrent: int = 1, done: int = 0) -> None:
        """Begin with ``done`` of ``target`` trials finished."""
        self._spec, self._target, self._concurrent = spec, target, concurrent
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._running: dict[int, tuple[TrialBegan, Probe | None]] = {}
        self._ended: list[TrialEnded] = []
        self._n_failed = 0
        self._done_before = done
        self._began = self._first_trial = time.monotonic()
        self._last = "preparing: model, data, baselines"

    def __enter__(self) -> "Progress":
        """Start the live table where there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4)
            self._live.__enter__()
        else:
            self._console.print(self._last, highlight=False)
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.update(self._table())
            self._live.__exit__(None, None, None)

    def show(self, event: Event) -> None:
        """Take an event."""
        line = self._take(event)
        if line:
            self._last = line
        if self._live is not None:
            self._live.update(self._table())
        elif line:
            self._console.print(line, highlight=False, soft_wrap=True)

    def eta_s(self) -> float | None:
        """Seconds to the end, from the trials finished in this session; ``None`` before the first."""
        finished = len(self._ended)
        left = self._target - self._n_finished
        if not left:
            return 0.0
        if not finished:
            return None
        return (time.monotonic() - self._first_trial) / finished * left

    @property
    def _n_finished(self) -> int:
        return self._done_before + len(self._ended) + self._n_failed

    def _take(self, event: Event) -> str | None:
        if isinstance(event, Prepared):
            self._first_trial = time.monotonic()
            base = event.baseline
            return (
                f"prepared in {duration(event.seconds)}: forget cross-entropy {base['forget_nll']:.2f}, "
                f"target {base['target_nll']:.2f} nats per token"
            )
        if isinstance(event, TrialBegan):
            self._running[event.number] = (event, None)
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"trial {event.number}{again}: {parameters(event.params)}"
        if isinstance(event, TrialProbed):
            began, _ = self._running[event.number]
            self._running[event.number] = (began, event.probe)
            return None
        if isinstance(event, TrialEnded):
            self._running.pop(event.number, None)
            self._ended.append(event)
            return self._ended_line(event)
        if isinstance(event, TrialBroke):
            self._running.pop(event.number, None)
            self._n_failed += event.is_final
            what = "failed" if event.is_final else "broke, will be tried again"
            return f"trial {event.number} {what}: {event.reason}"
        if isinstance(event, Warned):
            return f"warning: {event.text}"
        assert isinstance(event, Reporting)
        numbers = ", ".join(map(str, event.numbers))
        return f"measuring finalists on the reporting split: trials {numbers}"

    def _ended_line(self, event: TrialEnded) -> str:
        o = event.outcome
        adopted = " (adopted)" if event.adopted else ""
        return (
            f"trial {event.number} {o.state}{adopted}: {self._value(o)}; {o.reason}; "
            f"{self._n_finished}/{self._target} trials, about {duration(self.eta_s())} left"
        )

    def _value(self, outcome: Outcome) -> str:
        if outcome.feasible:
            return f"{self._spec.objective.metric} {outcome.value:.3f} at step {outcome.step}"
        return f"no feasible probe (penalised score {outcome.value:.3f})"

    def _best(self) -> TrialEnded | None:
        feasible = [e for e in self._ended if e.outcome.feasible]
        return max(feasible, key=lambda e: e.outcome.value, default=None)

    def _table(self) -> Group:
        table = Table(title=None, box=None, pad_edge=False)
        for name in ("trial", "step", self._spec.objective.metric, "retain drop", "general drop"):
            table.add_column(name, justify="right")
        table.add_column("parameters", overflow="ellipsis", no_wrap=True)
        for number, (began, probe) in sorted(self._running.items()):
            m = probe.metrics if probe else {}
            cells = [
                _number(m.get(k))
                for k in (self._spec.objective.metric, "retain_drop", "general_drop")
            ]
            step = f"{probe.step if probe else 0}/{self._spec.budget.max_steps}"
            table.add_row(str(number), step, *cells, parameters(began.params))
        states = [e.outcome.state for e in self._ended]
        stopped = sum(e.outcome.stopped_by in GUARD_STOPS for e in self._ended)
        best = self._best()
        head = Text(
            f"{self._n_finished}/{self._target} trials   complete {states.count('COMPLETE')}   "
            f"pruned {states.count('PRUNED')}   failed {self._n_failed}   "
            f"stopped by the retain guard {stopped}   "
            f"elapsed {duration(time.monotonic() - self._began)}   left {duration(self.eta_s())}"
        )
        summary = Text("best so far: none feasible yet")
        if best is not None:
            summary = Text(
                f"best so far: trial {best.number}, {self._spec.objective.metric} "
                f"{best.outcome.value:.3f} at step {best.outcome.step}"
            )
        return Group(
            head, summary, table, Text(self._last, style="dim", overflow="ellipsis", no_wrap=True)
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
