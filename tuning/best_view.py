"""The table of the best trials, as wide as the terminal: one column a parameter, and no number is ever broken."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tuning.ranking import pareto_front
from tuning.records import TrialRecord
from tuning.results import doubts
from tuning.run import Run
from tuning.wording import NOTHING, between, decimals, heading

_LIMITED_COLUMNS = 2
"""What is constrained or guarded has this many columns beside the objective, unless all are asked for."""
_GAP = 2
_LEGEND = (
    "* on the Pareto front of objective and largest constraint excess   ~ ties with the best   "
    "! breaks a constraint   ^ breaks one as a finalist   a to b: 95 % interval"
)

_LEGEND_OF_REPEATS = (
    "~ of a configuration that cannot be told from the recommended one, or another repeat of it   "
    "! breaks a constraint   ^ breaks one as a finalist   a to b: 95 % interval"
)


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column: its heading over its cells, and how early it is given room."""

    heading: str
    cells: Sequence[str]
    place: int

    @property
    def width(self) -> int:
        return max(len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))

    @property
    def name(self) -> str:
        return self.heading.replace("\n", " ")


@dataclass(frozen=True, kw_only=True)
class BestTable:
    """The best trials, feasible ones first.

    Attributes:
        run: Their run.
        top: How many.
        is_wide: Show all columns, however wide; else those that fit, and the names of the others below.
    """

    run: Run
    top: int
    is_wide: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, its legend, and what the untouched model measures."""
        columns = self._columns()
        shown = columns if self.is_wide else _fitting(columns, options.max_width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for column in shown:
            table.add_column(column.heading, justify="right", no_wrap=True, min_width=column.width)
        for cells in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*map(Text, cells))
        yield table
        yield Text(_LEGEND_OF_REPEATS if self.run.is_repetition else _LEGEND, style="dim")
        left_out = [column.name for column in columns if column not in shown]
        if left_out:
            yield Text(f"not shown: {', '.join(left_out)}; --wide shows all", style="dim")
        if self.run.is_repetition:
            yield from map(Text, doubts(self.run))
        base = self.run.facts.baseline
        if base:
            yield Text(
                f"untouched model: forget accuracy {base['forget_accuracy']:.3f}, target "
                f"{base['target_accuracy']:.3f} (approximate set {base['approximate_accuracy']:.3f})",
                style="dim",
            )

    def _columns(self) -> list[_Column]:
        run, shown = self.run, self.run.ranked[: self.top]
        metric = run.spec.objective.metric
        limited = run.spec.trial_selection().limited_metrics
        if not self.is_wide:
            limited = limited[:_LIMITED_COLUMNS]
        values = [
            f"{decimals(t.value)}\n{between(t.value_interval, metric)}".rstrip() for t in shown
        ]
        columns = [
            _Column(heading="trial", cells=self._marked(shown), place=0),
            _Column(heading="state", cells=[t.state for t in shown], place=5),
            _Column(heading=heading(metric), cells=values, place=1),
            _Column(heading="step", cells=[str(t.step) for t in shown], place=3),
        ]
        for place, name in [*((4, m) for m in limited), (6, "forget_accuracy")]:
            cells = [decimals(t.metrics.get(name)) for t in shown]
            columns.append(_Column(heading=heading(name), cells=cells, place=place))
        for name, short in short_names(run.spec.space).items():
            cells = [parameter_cell(t.params.get(name)) for t in shown]
            columns.append(_Column(heading=_folded(short, cells), cells=cells, place=2))
        return columns

    def _marked(self, shown: Iterable[TrialRecord]) -> list[str]:
        # a front of single seeds would rank them
        front = (
            set() if self.run.is_repetition else {t.number for t in pareto_front(self.run.trials)}
        )
        tied = {t.number for t in self.run.tied}
        found = []
        for trial in shown:
            marks = {
                "*": trial.number in front,
                "~": trial.number in tied,
                "!": not trial.feasible,
                "^": trial.reported_feasible is False,
            }
            found.append("".join(s for s, holds in marks.items() if holds) + str(trial.number))
        return found


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted name; the last two where that is not enough to tell them apart."""
    names = list(names)
    leaves = Counter(name.rpartition(".")[2] for name in names)
    return {
        name: name.rpartition(".")[2]
        if leaves[name.rpartition(".")[2]] == 1
        else ".".join(name.split(".")[-2:])
        for name in names
    }


def parameter_cell(value: Any) -> str:
    """A searched value in three digits; a dash where a trial does not have it."""
    if value is None:
        return NOTHING
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _folded(name: str, cells: Sequence[str]) -> str:
    """A name over as many lines as keep it about as narrow as what stands below it."""
    width = max([6, *map(len, cells)])
    lines = [""]
    for word in name.replace(".", "_").split("_"):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns that fit, those that matter most first, in their order; the first always stands."""
    left, kept = width + _GAP, list[int]()
    for i in sorted(range(len(columns)), key=lambda i: (columns[i].place, i)):
        needed = columns[i].width + _GAP
        if needed <= left or not kept:
            kept.append(i)
            left -= needed
    return [columns[i] for i in sorted(kept)]
