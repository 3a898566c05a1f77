"""Runs side by side: what each found, whether the differences are larger than their intervals, and what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from core.errors import UserError
from core.store.durable import finite
from tuning.config import specification_changes
from tuning.pool import measured_otherwise
from tuning.ranking import overlap
from tuning.results import counts, savings
from tuning.run import Run
from tuning.wording import between, decimals, duration, heading, parameters

_ALSO_SHOWN = ("retain_drop", "general_drop")


def compared(runs: Sequence[Run]) -> dict[str, Any]:
    """Plain values of a comparison, for scripts and for :func:`comparison_text`.

    Returns:
        ``runs``: for each its name, objective, counts, seconds, share of steps saved, and best trial with value,
        interval, metrics on both splits and parameters. ``differs``: what is not the same as in the first run, by
        run: ``measured`` (model, rows, objective, limits: values are then not to be compared) and ``settings`` (lines
        of the sweep file). ``ties``: pairs of folders of runs whose best values cannot be told apart; ``None`` where
        what was measured differs.

    Raises:
        UserError: If fewer than two runs are given.
    """
    if len(runs) < 2:
        raise UserError("RUN: name at least two run folders, such as runs/demo runs/demo-next")
    first = runs[0]
    differs = {run.path.as_posix(): _differences(first, run) for run in runs[1:]}
    is_one = not any(found["measured"] for found in differs.values())
    found: dict[str, Any] = finite(
        {
            "runs": [_of(run) for run in runs],
            "differs": differs,
            "ties": _ties(runs) if is_one else None,
        }
    )
    return found


def comparison_text(runs: Sequence[Run]) -> Group:
    """The comparison for the terminal."""
    found = compared(runs)
    metrics = [m for m in _ALSO_SHOWN if all(m in (r.best.metrics if r.best else {}) for r in runs)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", no_wrap=True)
    names = ["trials", heading(runs[0].spec.objective.metric), *map(heading, metrics)]
    for name in (*names, "steps\nsaved", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        best = run.best
        value = "" if best is None else decimals(best.value)
        ends = "" if best is None else between(best.value_interval, run.spec.objective.metric)
        table.add_row(
            Text(run.name),
            f"{sum(t.state in ('COMPLETE', 'PRUNED') for t in run.trials)} of {run.target}",
            f"{value}\n{ends}".rstrip() if best else "none feasible",
            *(decimals(best.metrics.get(m)) if best else "" for m in metrics),
            f"{savings(run).share:.0%}",
            duration(run.elapsed_s),
        )
    lines = [
        f"best of {run.name}: trial {run.best.number}, {parameters(run.best.params)}"
        for run in runs
        if run.best
    ]
    for path, differences in found["differs"].items():
        if differences["measured"]:
            lines.append(
                f"{path} measured something else than {runs[0].name}, so their values are not to be compared: "
                f"{', '.join(differences['measured'])}"
            )
        lines += [f"{path}: {line}" for line in differences["settings"]]
    lines += [
        f"{one} and {other} cannot be told apart: the 95 % intervals of their best values overlap"
        for one, other in found["ties"] or ()
    ]
    return Group(table, *(Text(line) for line in lines))


def _of(run: Run) -> dict[str, Any]:
    best = run.best
    return {
        "run": run.name,
        "path": run.path.as_posix(),
        "state": run.state,
        "objective": run.spec.objective.metric,
        "counts": counts(run),
        "elapsed_s": run.elapsed_s,
        "steps_saved_share": savings(run).share,
        "best": None
        if best is None
        else {
            "number": best.number,
            "value": best.value,
            "value_interval": None if best.value_interval is None else [*best.value_interval],
            "step": best.step,
            "params": dict(best.params),
            "metrics": dict(best.metrics),
            "report_metrics": None if best.report_metrics is None else dict(best.report_metrics),
        },
    }


def _differences(first: Run, run: Run) -> dict[str, list[str]]:
    lines = specification_changes(_settings(first), _settings(run))
    kept = [line for line in lines if line[:1] in "-+" and line[:3] not in ("---", "+++")]
    return {"measured": measured_otherwise(first, run), "settings": kept}


def _settings(run: Run) -> Mapping[str, Any]:
    """Of what is not measured differently: search, method, budget and stop rules."""
    plain = run.spec.plain()
    dropped = ("name", "model", "data", "objective", "constraints", "resources")
    return {key: value for key, value in plain.items() if key not in dropped}


def _ties(runs: Sequence[Run]) -> list[list[str]]:
    return [
        [one.path.as_posix(), other.path.as_posix()]
        for i, one in enumerate(runs)
        for other in runs[i + 1 :]
        if one.best and other.best and overlap(one.best.value_interval, other.best.value_interval)
    ]
