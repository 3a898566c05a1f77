"""Splits by role: what is trained on, what is probed, what is only reported. No row is in two of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from core.config import DataConfig, SourceConfig
from core.data.sources import Row, read_rows
from core.errors import DataError
from core.seeding import derive_seed

ROLES = ("forget", "retain", "approximate", "general")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows of every part.

    ``forget`` is trained on and judged whole. ``*_probe`` is measured during a trial, ``*_report`` only
    at the end of a sweep. ``retain_train`` and ``general_train`` feed the retain loss.
    """

    forget: tuple[Row, ...]
    retain_train: tuple[Row, ...]
    retain_probe: tuple[Row, ...]
    retain_report: tuple[Row, ...]
    approximate_probe: tuple[Row, ...]
    approximate_report: tuple[Row, ...]
    general_train: tuple[Row, ...]
    general_probe: tuple[Row, ...]
    general_report: tuple[Row, ...]


def split_data(config: DataConfig) -> Splits:
    """Read all sources and split them; the same configuration and contents give the same splits.

    Rows that occur twice in a role are kept once.

    Raises:
        DataError: If a source is missing or empty, too small for its parts, or two roles share a row.
    """
    rows = {role: _distinct(read_rows(getattr(config, role), role=role)) for role in ROLES}
    _refuse_overlap(rows, config)
    parts: dict[str, tuple[Row, ...]] = {"forget": tuple(rows["forget"])}
    for role in ("retain", "approximate", "general"):
        parts |= _cut(role, rows[role], config)
    return Splits(**parts)


def refuse_small_retain(n_rows: int, batch_rows: int, *, role: str = "retain") -> None:
    """Refuse a retain set of which one optimiser step would read a row twice.

    Args:
        n_rows: Rows that the retain loss is trained on.
        batch_rows: Rows of the retain loss in one optimiser step, over all ranks.
        role: ``retain``, or ``general`` where the retain loss reads that.

    Raises:
        DataError: If there are fewer rows than one step reads.
    """
    if n_rows < batch_rows:
        raise DataError(
            f"data.{role}: {n_rows} rows to train on are fewer than the {batch_rows} of one optimiser step; "
            "give more rows, or lower batch.global_batch_size, data.probe_rows or data.report_rows"
        )


def _cut(role: str, rows: Sequence[Row], config: DataConfig) -> dict[str, tuple[Row, ...]]:
    order = list(rows)
    random.Random(derive_seed(config.split_seed, "split", role)).shuffle(order)  # noqa: S311
    if role == "approximate":  # never trained on, and measured once: every row serves
        return _halves(order, config)
    n_probe, n_report = (getattr(rows, role) for rows in (config.probe_rows, config.report_rows))
    needed = n_probe + n_report + (1 if role == "retain" else 0)
    if len(order) < needed:
        raise DataError(
            f"data.{role}: {n_probe} probe rows and {n_report} report rows"
            f"{' and at least one to train on' if role == 'retain' else ''} need {needed} distinct rows, "
            f"got {len(order)}; give more rows, or lower data.probe_rows or data.report_rows"
        )
    return {
        f"{role}_probe": tuple(order[:n_probe]),
        f"{role}_report": tuple(order[n_probe : n_probe + n_report]),
        f"{role}_train": tuple(order[n_probe + n_report :]),
    }


def _halves(order: Sequence[Row], config: DataConfig) -> dict[str, tuple[Row, ...]]:
    """The approximate set in two parts, which are measured together; their names stand in the records of runs."""
    more = config.report_rows.retain - config.probe_rows.retain
    n_probe = (len(order) - more) // 2
    if not 0 < n_probe < len(order):
        n_probe = len(order) // 2
    if n_probe == 0:
        raise DataError(
            f"data.approximate: at least 2 distinct rows are needed, got {len(order)}; give more rows"
        )
    return {
        "approximate_probe": tuple(order[:n_probe]),
        "approximate_report": tuple(order[n_probe:]),
    }


def _distinct(rows: Sequence[Row]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.normalised, row)
    return list(first.values())


def _refuse_overlap(rows: dict[str, list[Row]], config: DataConfig) -> None:
    seen: dict[str, str] = {}
    for role in ROLES:
        for row in rows[role]:
            other = seen.setdefault(row.normalised, role)
            if other != role:
                source: SourceConfig = getattr(config, role)
                raise DataError(
                    f"data.{role}: {source.source} shares a row with data.{other}: "
                    f"{row.answer[:60] or row.place!r}; the sets must not overlap, remove it from one"
                )
