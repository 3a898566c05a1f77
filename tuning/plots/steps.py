"""Why trials ended: the optimiser steps that each made, and those that stopping it early saved."""

from dataclasses import dataclass

from tuning.plots.reading import ending_of, kind_of, n_by_ending
from tuning.plots.style import Ending
from tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class StepsBar:
    """Optimiser steps of a finished trial: made, and not made because it was stopped early."""

    number: int
    ending: Ending
    made: int
    saved: int


@dataclass(frozen=True, kw_only=True)
class StepsData:
    """Steps made and saved by trial."""

    planned: int
    bars: tuple[StepsBar, ...]

    @property
    def n_by_ending(self) -> dict[Ending, int]:
        """Trials of each ending that occurs."""
        return n_by_ending(b.ending for b in self.bars)

    def saved_by(self, ending: Ending) -> int:
        """Steps saved by the trials of one ending."""
        return sum(b.saved for b in self.bars if b.ending == ending)


def steps_data(run: Run) -> StepsData:
    """Steps of each finished trial; a trial that broke has saved nothing."""
    planned = run.spec.budget.max_steps
    bars = []
    for trial in run.trials:
        kind = kind_of(trial)
        if kind == "running":
            continue
        made = trial.steps if trial.steps is not None else (trial.step or 0)
        saved = 0 if kind == "failed" else max(0, planned - made)
        bars.append(StepsBar(number=trial.number, ending=ending_of(trial), made=made, saved=saved))
    return StepsData(planned=planned, bars=tuple(bars))
