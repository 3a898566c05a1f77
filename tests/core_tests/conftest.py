"""What the tests of several files of this folder are about: a tokenizer, and data of the four roles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, write_rows
from data_roles import ROLES, DataMaker

from core.config import DataConfig


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte; the end of text, id 0, also serves as padding."""
    made = byte_tokenizer()
    made.pad_token = "<eos>"
    return made


@pytest.fixture
def make_data(tmp_path: Path) -> DataMaker:
    """Files of the four roles with distinct rows; ``make_data(retain=[...])`` replaces one role's."""

    def make(changes: Mapping[str, Any] | None = None, **texts: list[str]) -> DataConfig:
        contents = {role: [f"{role} row {i}" for i in range(12)] for role in ROLES} | texts
        values: dict[str, Any] = {
            role: {"source": str(write_rows(tmp_path / f"{role}.jsonl", rows))}
            for role, rows in contents.items()
        }
        return DataConfig(**(values | {"probe_rows": 4, "report_rows": 5} | dict(changes or {})))

    return make
