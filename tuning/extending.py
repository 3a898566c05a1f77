"""How many trials a resumed sweep is to reach, which of them repeat failed ones, and what a person should know."""

from collections.abc import Collection
from pathlib import Path

from core.errors import ConfigError, UserError
from tuning.config import SweepSpec
from tuning.files import load_sweep
from tuning.run import Run


def asked_trials(run: Run, *, trials: int | None, spec: SweepSpec | None) -> int | None:
    """The new number of trials of the whole sweep; ``None`` if it stays.

    Args:
        run: The run.
        trials: What ``--trials`` says.
        spec: The sweep file as it is now, if it is given: a larger ``budget.trials`` than the run aims at counts.
    """
    if trials is not None or spec is None or spec.budget.trials <= run.target:
        return trials
    return spec.budget.trials


def to_retry(run: Run, numbers: Collection[int]) -> list[int]:
    """Failed trials that are to run again: these, or else all that were not repeated yet.

    Args:
        run: The run.
        numbers: What ``--trial`` names; none for all.

    Raises:
        UserError: If one of them did not fail, or was repeated.
    """
    repeated = {t.retry_of: t.number for t in run.trials if t.retry_of is not None}
    failed = [t.number for t in run.trials if t.state == "FAIL"]
    for number in numbers:
        if number not in failed:
            raise UserError(
                f"--trial {number}: a failed trial is expected, of which {run.path} has "
                f"{', '.join(map(str, failed)) or 'none'}"
            )
        if number in repeated:
            raise UserError(
                f"--trial {number}: trial {repeated[number]} repeats it already; look at it with "
                f"`unlearn-tune show {run.path} {repeated[number]}`"
            )
    return [n for n in failed if n not in repeated and (not numbers or n in numbers)]


def remarks(run: Run, *, trials: int | None, spec: SweepSpec | None) -> list[str]:
    """What to say before a run goes on: where it goes, and which numbers of trials do not count.

    Args:
        run: The run as it lies there.
        trials: What ``--trials`` says.
        spec: The sweep file as it is now, if it is given.
    """
    asked = asked_trials(run, trials=trials, spec=spec)
    if asked is not None:
        return [f"{run.path}: goes on to {asked} trials (before: {run.target})"]
    found = []
    other = _changed_number(run, spec)
    if other not in (None, run.target):
        found.append(
            f"{run.path}: goes on to {run.target} trials, not to the {other} that budget.trials of the sweep file is "
            f"now; for these give --trials {other}"
        )
    n_ended = sum(t.has_ended for t in run.trials)
    if n_ended >= run.target:
        found.append(
            f"{run.path}: all {run.target} trials have ended, so no more are tried; for more give --trials K"
        )
    return found


def _changed_number(run: Run, spec: SweepSpec | None) -> int | None:
    """``budget.trials`` of the sweep file as it is now, if that is known and not as the run began."""
    if spec is None:
        file = Path(run.facts.file)
        try:
            spec = load_sweep(file) if file.is_file() else run.spec
        except ConfigError:
            return None  # nobody asked for this file, so it need not be right
    return None if spec.budget.trials == run.spec.budget.trials else spec.budget.trials
