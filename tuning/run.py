"""A run as whoever looks at it sees it: its folder, read. Needs neither Optuna, Ray nor torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError, UserError
from core.store.confinement import refuse_links_out
from tuning.config import SweepSpec
from tuning.files import parse_sweep, read_yaml
from tuning.over_seeds import Repeated, by_configuration, equals, is_repetition, over_seeds
from tuning.ranking import best, is_candidate, ranked, tied_with_best, trial_rows
from tuning.records import (
    LEDGER_FILE,
    OWN_FILES,
    SPEC_FILE,
    DriverFacts,
    RunFacts,
    RunState,
    TrialRecord,
    is_driven,
    read_history,
    read_ledger,
)
from tuning.wording import parameters, with_interval

if TYPE_CHECKING:
    import pandas


_ALWAYS_SHOWN = ("number", "state", "value", "value_low", "value_high", "feasible", "step")
"""Columns of a table of trials, also of one without any."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A run folder, read.

    Attributes:
        path: The folder.
        spec: Its sweep.
        trials: All trials, by number.
        facts: What was recorded beside the sweep when the run began.
        driver: What the driver keeps in the ledger.
        is_driven: Whether a driver holds the run at this moment.
    """

    path: Path
    spec: SweepSpec
    trials: tuple[TrialRecord, ...]
    facts: RunFacts
    driver: DriverFacts
    is_driven: bool

    def __repr__(self) -> str:
        """One line: state, counts, the best trial."""
        metric, first = self.spec.objective.metric, self.best
        n_finished = sum(t.state in ("COMPLETE", "PRUNED", "FAIL") for t in self.trials)
        found = (
            "no feasible trial"
            if first is None
            else f"best trial {first.number}: {metric} "
            f"{with_interval(first.value, first.value_interval, metric)} with {parameters(first.params)}"
        )
        return f"Run({self.path}: {self.state}, {n_finished} of {self.target} trials, {found})"

    def _repr_html_(self) -> str:
        """The same above the ranked trials, for notebooks."""
        shown = self.to_dataframe().set_index("number")
        columns = [name for name in _ALWAYS_SHOWN if name != "number"]
        columns += [name for name in shown.columns if name.startswith("params.")]
        table = shown.loc[[t.number for t in self.ranked], columns].head(10)
        return f"<p>{escape(repr(self))}</p>{table.to_html()}"

    @property
    def best(self) -> TrialRecord | None:
        """The best trial that kept every limit, finalists by the reporting split, too; ``None`` if there is none.

        Of a repeat run the trial that stands for the configuration which is recommended over seeds.
        """
        if self.is_repetition:
            return self.repeats[0].representative if self.repeats else None
        return best(self.trials)

    @property
    def ranked(self) -> list[TrialRecord]:
        """Finished trials, best first; of a repeat run by configuration, because single seeds are not ranked."""
        if self.is_repetition:
            return by_configuration(self.repeats, self.trials)
        return ranked(self.trials)

    @property
    def tied(self) -> list[TrialRecord]:
        """The other candidates that cannot be told from the best; of a repeat run those of such configurations."""
        if not self.is_repetition:
            return tied_with_best(self.trials)
        first = self.best
        if first is None:
            return []
        of = [self.repeats[0], *equals(self.repeats)]
        return [t for one in of for t in one.trials if is_candidate(t) and t is not first]

    @property
    def is_repetition(self) -> bool:
        """Whether it is a repeat run: configurations of another run over seeds."""
        return is_repetition(self.spec)

    @cached_property
    def repeats(self) -> tuple[Repeated, ...]:
        """The configurations of a repeat run, the recommended one first; none in other runs."""
        return tuple(over_seeds(self.spec, self.trials)) if self.is_repetition else ()

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.path.name

    @property
    def target(self) -> int:
        """Trials that the sweep is to reach."""
        noted = self.driver.target
        return self.spec.budget.trials if noted is None else noted

    @property
    def state(self) -> RunState:
        """What the sweep is doing, or how it ended."""
        return "running" if self.is_driven else self.driver.ended or "interrupted"

    @property
    def elapsed_s(self) -> float | None:
        """Seconds that drivers have worked on the run, also while one does; ``None`` before the first."""
        before, began = self.driver.elapsed_s, self.driver.session_began
        if not self.is_driven or began is None:
            return before
        return round((before or 0.0) + time.time() - began, 1)

    @property
    def probe_rows(self) -> dict[str, int]:
        """Rows of each set that the metrics of a probe follow from; of ``approximate`` all, on either split."""
        rows = self.facts.rows
        found = {
            s: rows.get("forget" if s == "forget" else f"{s}_probe")
            for s in ("forget", "retain", "general")
        }
        found["approximate"] = rows.get("approximate_probe", 0) + rows.get("approximate_report", 0)
        return {name: n for name, n in found.items() if n}

    def rows(self, shown: Sequence[TrialRecord]) -> list[dict[str, Any]]:
        """Trials as ``best --format json`` shows them, the binding shape."""
        return trial_rows(shown, among=self.trials, tied=self.tied, probe_rows=self.probe_rows)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each trial; parameters and metrics as columns ``params.*``, ``metrics.*``."""
        import pandas

        rows = []
        for row in self.rows(self.trials):
            for group in ("metrics_intervals", "report_intervals", "probe_rows"):
                row.pop(group)
            row["value_low"], row["value_high"] = row.pop("value_interval") or (None, None)
            for group in ("params", "metrics", "report_metrics"):
                values = row.pop(group) or {}
                row |= {f"{group}.{key}": value for key, value in values.items()}
            rows.append(row)
        return pandas.DataFrame(rows, columns=None if rows else list(_ALWAYS_SHOWN))

    def history(self, number: int) -> list[dict[str, Any]]:
        """History lines of a trial's latest attempt, the untouched model's first."""
        return read_history(self.path, number, self.trials[number].attempt)


def load_run(run_dir: Path | str) -> Run:
    """Read a run folder.

    Raises:
        UserError: If there is no run, a file of it is a link that leads out of it, or its ledger cannot be read.
    """
    run_dir = Path(run_dir)
    ledger = run_dir / LEDGER_FILE
    if not ledger.is_file() and (run_dir / SPEC_FILE).is_file() and any(run_dir.glob("trials/*")):
        raise UserError(
            f"{ledger}: the ledger is missing; rebuild it from what the trials committed with "
            f"`unlearn-tune repair {run_dir}`"
        )
    if not ledger.is_file() or not (run_dir / SPEC_FILE).is_file():
        raise UserError(
            f"{run_dir}: no run is there ({LEDGER_FILE} and {SPEC_FILE} are expected); "
            "give the folder of a sweep, such as runs/demo"
        )
    refuse_links_out(run_dir, OWN_FILES)
    trials, driver = read_ledger(ledger)
    spec, facts = read_spec(run_dir / SPEC_FILE)
    driven = is_driven(run_dir)
    _refuse_foreign(run_dir, spec, trials)
    return Run(
        path=run_dir,
        spec=spec,
        trials=trials if driven else tuple(map(_undriven, trials)),
        facts=facts,
        driver=driver,
        is_driven=driven,
    )


def _undriven(trial: TrialRecord) -> TrialRecord:
    """A trial of a run that nobody drives: what the ledger has as running is interrupted."""
    return replace(trial, state="INTERRUPTED") if trial.state == "RUNNING" else trial


def _refuse_foreign(run_dir: Path, spec: SweepSpec, trials: Sequence[TrialRecord]) -> None:
    """Refuse a ledger and a sweep of different runs: trials of other fields than those that the sweep searches.

    Raises:
        UserError: With the first trial that is not of the sweep.
    """
    always = {name for name, dimension in spec.space.items() if not dimension.when}
    for trial in trials:
        if not trial.params:  # it waits
            continue
        strange, lacking = trial.params.keys() - spec.space.keys(), always - trial.params.keys()
        if strange or lacking:
            what = (
                f"has {min(strange)}, which {SPEC_FILE} does not search"
                if strange
                else f"lacks {min(lacking)}, which {SPEC_FILE} searches"
            )
            raise UserError(
                f"{run_dir}: {LEDGER_FILE} and {SPEC_FILE} are of different runs, or damaged: trial {trial.number} "
                f"{what}; restore both from a copy of one run"
            )


def read_spec(path: Path) -> tuple[SweepSpec, RunFacts]:
    """The sweep, and the facts that were recorded beside it when the run began."""
    values = read_yaml(path)
    if not isinstance(values.get("sweep"), dict):
        raise ConfigError(str(path), ["sweep: required, but absent; restore the file from a copy"])
    sweep = values["sweep"]
    if isinstance(sweep.get("stop"), dict):
        sweep["stop"].setdefault("landing", False)  # a run that does not say so did not land
    return parse_sweep(sweep, where=str(path)), RunFacts.read(values)
