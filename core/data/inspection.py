"""What can be found wrong with data before there is a tokenizer or a model. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import DataConfig, SourceConfig
from core.data.rows import Row
from core.data.sources import is_at_hand, read_rows, source_problem
from core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What reading some sources has shown.

    Attributes:
        rows: Role to its rows that are not blank, of the sources that are at hand and could be read.
        problems: One line for each problem.
        notes: What a person should know, and what stops nothing.
    """

    rows: Mapping[str, Sequence[Row]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_sources(sources: Mapping[str, SourceConfig]) -> Inspection:
    """Read all sources that need no download, and compare their rows by their text.

    Rows of equal text have equal token ids. The reverse does not hold: rows may also be equal once they are cut,
    and a row may be too short for a tokenizer. So what is found here is certain, and not all that there is.

    Args:
        sources: Role to its source.
    """
    rows: dict[str, list[Row]] = {}
    problems: list[str] = []
    notes: list[str] = []
    for role, source in sources.items():
        if not is_at_hand(source):
            wrong = source_problem(source)
            if wrong:
                problems.append(f"data.{role}.{wrong}")
            else:
                notes.append(f"data.{role}: {source.source} is read when it is loaded, not here")
            continue
        try:
            read = read_rows(source, role=role)
        except DataError as err:
            problems.append(str(err))
            continue
        rows[role] = [row for row in read if not row.is_blank]
        if len(rows[role]) < len(read):
            n_blank = len(read) - len(rows[role])
            notes.append(f"data.{role}: {n_blank} of {len(read)} rows are blank and left out")
    problems += _overlaps(rows, sources)
    return Inspection(rows=rows, problems=tuple(problems), notes=tuple(notes))


def size_problems(
    data: DataConfig, rows: Mapping[str, Sequence[Row]], *, step_rows: Mapping[str, int]
) -> list[str]:
    """Roles that have too few rows for their parts, even if no row is too short.

    Args:
        data: The sizes of the parts.
        rows: Role to its rows; a role that is absent is not looked at.
        step_rows: Role to the rows of it that one optimiser step reads; absent if losses do not read it.
    """
    found = []
    for role in ("retain", "general"):
        if role not in rows:
            continue
        is_chunked = getattr(data, role).is_chunked(role)  # a document may then fill a step
        n_step = min(step_rows.get(role, 0), 1 if is_chunked else step_rows.get(role, 0))
        parts = {
            "probe rows": getattr(data.probe_rows, role),
            "report rows": getattr(data.report_rows, role),
            "rows of one optimiser step": max(n_step, 1 if role == "retain" else 0),
        }
        needed, n_distinct = sum(parts.values()), len(set(map(_text_of, rows[role])))
        if n_distinct < needed:
            listed = ", ".join(f"{n} {name}" for name, n in parts.items() if n)
            found.append(
                f"data.{role}: {listed} need {needed} distinct rows, got {n_distinct}; give more rows, or lower "
                "data.probe_rows, data.report_rows or batch.global_batch_size"
            )
    if "approximate" in rows and len(set(map(_text_of, rows["approximate"]))) < 2:
        found.append("data.approximate: at least 2 distinct rows are needed, got 1; give more rows")
    return found


def _overlaps(rows: Mapping[str, Sequence[Row]], sources: Mapping[str, SourceConfig]) -> list[str]:
    """A line for each two roles with a row of equal text."""
    found = []
    roles = list(rows)
    for i, role in enumerate(roles):
        for other in roles[:i]:
            theirs = {_text_of(row): row for row in reversed(rows[other])}
            shared = [row for row in rows[role] if _text_of(row) in theirs]
            if shared:
                first = shared[0]
                found.append(
                    f"data.{role}: {first.place} is also in data.{other}: {theirs[_text_of(first)].place}, and "
                    f"{_others(len(shared) - 1)}; the sets must not overlap: {_advice(sources[role], sources[other])}"
                )
    return found


def _others(n: int) -> str:
    return f"so are {n} other rows" if n > 1 else "so is 1 other row" if n else "no other row is"


def _advice(one: SourceConfig, other: SourceConfig) -> str:
    if one.source != other.source:
        return "remove it from one"
    return "give each rows of its own, such as rows: [0, 200] and rows: [200, null]"


def _text_of(row: Row) -> Any:
    return (row.before, row.prompt, row.answer, row.token_ids)
