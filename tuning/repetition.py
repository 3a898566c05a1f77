"""Finalists over seeds: a sweep of the same configurations with other seeds, and what it says of them.

A value of one seed is a draw: of two trials in a tie nobody can say which is better. Repeated over the same seeds,
their paired differences can.
"""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from core.errors import UserError
from tuning.config import SweepSpec
from tuning.files import parse_sweep
from tuning.over_seeds import Repeated, ends, or_nothing, repeated_rows
from tuning.points import SEED
from tuning.ranking import is_candidate, ranked
from tuning.run import Run
from tuning.wording import listed, parameters


def repetition(run: Run, *, top: int, seeds: int) -> SweepSpec:
    """The sweep that makes the best trials of a run again, under new seeds.

    Args:
        run: The run.
        top: How many of its candidates, best first.
        seeds: How many seeds each.

    Raises:
        UserError: If no trial kept every limit, or a run of repetitions is repeated.
    """
    if SEED in run.spec.space:
        raise UserError(
            f"{run.path}: already searches over seeds; repeat the run that it came from"
        )
    best = [t for t in ranked(run.trials) if is_candidate(t)][:top]
    if not best:
        raise UserError(
            f"{run.path}: no trial kept every limit, so that there is nothing to repeat"
        )
    chosen = [run.spec.seed + 1 + i for i in range(seeds)]
    values = run.spec.plain()
    values["name"] = f"{run.name[:57]}-repeat"
    values["space"][SEED] = {"categorical": chosen, "why": "each configuration runs under each"}
    values["start_from"] = [
        {"source": f"trial {t.number} of {run.name}", "values": dict(t.params) | {SEED: seed}}
        for seed in chosen
        for t in best
    ]
    n = len(values["start_from"])
    values["budget"] |= {"trials": n, "finalists": n}
    values["pruning"]["ranking"] = "none"
    values["sampler"] = {"name": "random", "seed": run.spec.sampler.seed}
    return parse_sweep(values, where=f"the repetition of {run.path}")


def repeated_json(run: Run) -> dict[str, Any]:
    """For scripts; the recommended configuration first."""
    return {
        "run": run.name,
        "objective": run.spec.objective.metric,
        "configurations": repeated_rows(run.repeats),
    }


def repeated_text(run: Run) -> Group:
    """For the terminal; the recommended configuration first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = (
        "kept\nlimits",
        "mean",
        "spread",
        "95 %\nof the mean",
        "at equal\nutility",
        "paired\ndifference",
    )
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    rows = run.repeats
    for i, one in enumerate(rows):
        difference = one.difference
        table.add_row(
            _letter(i),
            f"{one.kept} of {len(one.trials)}",
            or_nothing(one.value.mean),
            or_nothing(one.value.deviation),
            ends(one.value),
            or_nothing(one.at_utility.mean),
            "recommended"
            if difference is None
            else f"{ends(difference)}{'' if one.is_told_apart else ' ~'}",
        )
    lines = [f"{_letter(i)}: {_line(one)}" for i, one in enumerate(rows)]
    legend = "~ cannot be told from the recommended one: 0 lies in the 95 % interval of the paired difference"
    return Group(table, *map(Text, lines), Text(legend, style="dim"))


def _letter(place: int) -> str:
    """Name of a configuration in the table and below it; A is the recommended one."""
    return chr(ord("A") + place) if place < 26 else str(place)


def _line(one: Repeated) -> str:
    """Which trial a configuration was, which trials repeat it, and its values."""
    origin = f"{one.source}, repeated" if one.source else "repeated"
    numbers = listed([t.number for t in one.trials])
    return f"{origin} as trial{'s' * (len(one.trials) != 1)} {numbers}: {parameters(one.params)}"
