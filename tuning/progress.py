"""Shows a sweep to a person: a live table on a terminal, plain lines elsewhere. Always on stderr."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.console import Group
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
    TrialResumed,
    Warned,
)
from tuning.objective import Outcome
from tuning.ranking import in_order
from tuning.results import GUARD_STOPS
from tuning.terminal import Shown, shown, terminal
from tuning.time_left import time_left_s
from tuning.wording import decimals, duration, heading, parameters

_LIMITED_COLUMNS = 3
"""What is constrained or guarded has this many columns at most, so that a line fits a terminal."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    """An attempt at a trial: since when by the monotonic clock, and its latest probe."""

    began: TrialBegan
    since: float
    probe: Probe | None = None


class Progress:
    """Watches a sweep. Use as a context manager."""

    def __init__(
        self,
        spec: SweepSpec,
        *,
        target: int,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with ``done`` of ``target`` trials finished; ``clock`` gives seconds."""
        self._spec, self._target, self._clock = spec, target, clock
        self._limited: tuple[str, ...] = spec.trial_selection().limited_metrics
        self._console = terminal(is_error=True)
        self._live: Live | None = None
        self._running: dict[int, _Running] = {}
        self._candidates: dict[int, TrialEnded] = {}  # by the identity of their outcomes
        self._n_of: Counter[str] = Counter()
        self._n_guarded = 0
        self._best: TrialEnded | None = None
        self._n_failed = 0
        self._done_before = done
        self._began = self._clock()
        self._durations: list[float] = []
        self._at_once = 1
        self._last = "preparing: model, data, baselines"

    def __enter__(self) -> "Progress":
        """Start the live table where there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(Shown(self._table()), console=self._console, refresh_per_second=4)
            self._live.__enter__()
        else:
            self._console.print(shown(self._last))
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.update(Shown(self._table()))
            self._live.__exit__(None, None, None)

    def show(self, event: Event) -> None:
        """Take an event."""
        line = self._take(event)
        if line:
            self._last = line
        if self._live is not None:
            self._live.update(Shown(self._table()))
        elif line:
            self._console.print(shown(line), soft_wrap=True)

    def eta_s(self) -> float | None:
        """Seconds to the end, from the trials that ran in this session; ``None`` before the first ended.

        As many trials are taken to run at the same time as have been seen to.
        """
        running = len(self._running)
        waiting = max(0, self._target - self._n_finished - running)
        return time_left_s(self._durations, waiting=waiting, running=running, at_once=self._at_once)

    @property
    def _n_finished(self) -> int:
        return self._done_before + self._n_of.total() + self._n_failed

    def _take(self, event: Event) -> str | None:
        if isinstance(event, Prepared):
            base, self._limited = event.baseline, event.limited
            scale = f"; {event.scale}" if event.scale else ""
            return (
                f"prepared in {duration(event.seconds)}: forget cross-entropy {base['forget_nll']:.2f}, "
                f"target {base['target_nll']:.2f} nats per token{scale}"
            )
        if isinstance(event, TrialBegan):
            self._running[event.number] = _Running(began=event, since=self._clock())
            self._at_once = max(self._at_once, len(self._running))
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"trial {event.number}{again}: {parameters(event.params)}"
        if isinstance(event, TrialResumed):
            return f"trial {event.number} (attempt {event.attempt}) goes on after step {event.step}"
        if isinstance(event, TrialProbed):
            self._running[event.number] = replace(self._running[event.number], probe=event.probe)
            return None
        if isinstance(event, TrialEnded):
            ran = self._running.pop(event.number, None)
            if ran is not None:  # one that was adopted did not run in this session
                self._durations.append(self._clock() - ran.since)
            self._count(event)
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
            f"{self._n_finished}/{self._target} trials, about {duration(self.eta_s(), unknown='?')} left"
        )

    def _value(self, outcome: Outcome) -> str:
        if outcome.feasible:
            return f"{self._spec.objective.metric} {outcome.value:.3f} at step {outcome.step}"
        return f"no feasible probe (penalised score {outcome.value:.3f})"

    def _count(self, ended: TrialEnded) -> None:
        """Take what is shown of all ended trials together, once for each: the table is drawn at every event."""
        self._n_of[ended.outcome.state] += 1
        self._n_guarded += ended.outcome.stopped_by in GUARD_STOPS
        if ended.outcome.feasible and ended.outcome.state == "COMPLETE":
            self._candidates[id(ended.outcome)] = ended
            first = in_order([e.outcome for e in self._candidates.values()])[0]
            self._best = self._candidates[id(first)]

    def _table(self) -> Group:
        table = Table(title=None, box=None, pad_edge=False)
        objective = self._spec.objective.metric
        watched = (objective, *self._limited[:_LIMITED_COLUMNS])
        for name in ("trial", "step", *map(heading, watched)):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("parameters", overflow="ellipsis", no_wrap=True)
        for number, trial in sorted(self._running.items()):
            probe = trial.probe
            m = probe.metrics if probe else {}
            cells = [decimals(m.get(k)) for k in watched]
            step = f"{probe.step if probe else 0}/{self._spec.budget.max_steps}"
            table.add_row(str(number), step, *cells, parameters(trial.began.params))
        head = Text(
            f"{self._n_finished}/{self._target} trials   complete {self._n_of['COMPLETE']}   "
            f"pruned {self._n_of['PRUNED']}   failed {self._n_failed}   "
            f"stopped by the retain guard {self._n_guarded}   "
            f"elapsed {duration(self._clock() - self._began)}   left {duration(self.eta_s(), unknown='?')}"
        )
        summary = Text("best so far: none feasible yet")
        if self._best is not None:
            best = self._best
            summary = Text(
                f"best so far: trial {best.number}, {self._spec.objective.metric} "
                f"{best.outcome.value:.3f} at step {best.outcome.step}"
            )
        return Group(
            head, summary, table, Text(self._last, style="dim", overflow="ellipsis", no_wrap=True)
        )
