"""The verb ``evaluate``: the data file, and the tables of a result."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from core.config.evaluation import EvaluationData, parse_data
from core.errors import ConfigError, UserError
from core.store.texts import read_json
from tuning.data_words import count_words, read_counts
from tuning.files import anchored, read_yaml
from tuning.records import SPEC_FILE
from tuning.wording import score


def read_data(path: Path) -> EvaluationData:
    """Rows by role from a file: a mapping of roles, or the ``data`` section of a sweep or trial file.

    Args:
        path: The file, or a run folder, whose ``spec.yaml`` is read. Relative paths in it are relative to it, if
            they are there.

    Raises:
        ConfigError: With every problem at once.
    """
    if path.is_dir() and (path / SPEC_FILE).is_file():
        path = path / SPEC_FILE
    values, place = read_yaml(path), str(path)
    if isinstance(values.get("sweep"), Mapping):  # what a run keeps of its sweep
        values, place = values["sweep"], f"{place}, sweep"
    if "data" not in values:
        return parse_data(anchored({"data": values}, path.parent)["data"], where=place)
    if not isinstance(values["data"], Mapping):
        raise ConfigError(place, [f"data: must be a mapping of roles, got {values['data']!r}"])
    return parse_data(anchored(values, path.parent)["data"], where=f"{place}, data")


def refuse_output(path: Path) -> None:
    """Refuse a file that is there already, or that cannot be made.

    Raises:
        UserError: If it exists, or no folder on the way to it can be written.
    """
    if path.exists():
        raise UserError(f"--out: {path} exists already; give a new file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"--out: {folder} is no folder that this user can write; give a file elsewhere"
        )


def without_samples(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with metrics and notes only."""
    suites = {
        name: {part: value for part, value in found.items() if part != "samples"}
        for name, found in result["suites"].items()
    }
    return {**result, "suites": suites}


def with_before(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A result beside that of the model before unlearning, on the same rows.

    Returns:
        ``after`` with ``before`` (its suites) and ``difference``: suite to metric to after minus before, of metrics
        that both have as numbers.

    Raises:
        UserError: If they are not of the same rows.
    """
    ours, theirs = (result["identity"]["rows"] for result in (after, before))
    other = [role for role in ours if role in theirs and ours[role] != theirs[role]]
    if other:
        raise UserError(
            f"--before: was measured on other rows of {', '.join(other)}; evaluate both with the same --data "
            "and --limit"
        )
    difference = {
        name: {
            metric: value - before["suites"][name]["metrics"][metric]
            for metric, value in found["metrics"].items()
            if name in before["suites"]
            and isinstance(value, int | float)
            and isinstance(before["suites"][name]["metrics"].get(metric), int | float)
        }
        for name, found in after["suites"].items()
    }
    return {**after, "before": before["suites"], "difference": difference}


def read_result(path: Path) -> dict[str, Any]:
    """What an earlier ``evaluate --out`` wrote.

    Raises:
        UserError: If it is no such file.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not {"suites", "identity"} <= found.keys():
        raise UserError(f"--before: {path} was not written by evaluate --out; give such a file")
    return found


def evaluation_tables(result: Mapping[str, Any]) -> Group:
    """A table of metrics for each suite, its notes below; at the end what was left out of roles."""
    parts: list[Table | Text] = []
    for name, found in result["suites"].items():
        before = result.get("before", {}).get(name, {}).get("metrics", {})
        columns = ("before", "after", "difference") if before else ("value",)
        table = Table("metric", *columns, title=name, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for metric, value in found["metrics"].items():
            cells = [score(value)]
            if before:
                change = result["difference"][name].get(metric)
                was = score(before[metric]) if metric in before else ""
                cells = [was, *cells, "" if change is None else f"{change:+.4f}"]
            table.add_row(metric, *cells)
        parts.append(table)
        parts += [Text(f"  {note}") for note in found["notes"]]
    counts = read_counts(result["data_counts"])
    parts += [Text(f"{role}: {count_words(c)}") for role, c in counts.items() if c.leaves_out]
    return Group(*parts)
