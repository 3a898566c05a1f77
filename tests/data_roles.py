"""The roles of a data section, and rows read for one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config import DataConfig, SourceConfig
from core.data.rows import Row
from core.data.sources import read_rows

ROLES = ("forget", "retain", "approximate", "general")
PAIR = {"prompt": "q", "answer": "a"}

DataMaker = Callable[..., DataConfig]


def rows_of(source: str | Path, **options: Any) -> list[Row]:
    """Rows of a source, read for the forget role."""
    return read_rows(SourceConfig(source=str(source), **options), role="forget")
