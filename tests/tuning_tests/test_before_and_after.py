"""Two results of ``evaluate`` side by side, and their differences."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core.errors import UserError
from tuning.evaluate import evaluation_tables, read_result, with_before


def result(rows: str = "sha256:a", **metrics: Any) -> dict[str, Any]:
    return {
        "suites": {"probes": {"metrics": metrics, "notes": []}},
        "identity": {"rows": {"forget": rows}},
        "data_counts": {},
    }


def test_the_difference_is_after_minus_before() -> None:
    found = with_before(result(forget_nll=1.0, x="nan"), result(forget_nll=3.5, x="nan", new=1.0))
    assert found["difference"] == {"probes": {"forget_nll": 2.5}}
    assert found["before"]["probes"]["metrics"]["forget_nll"] == 1.0


def test_both_stand_in_one_table() -> None:
    out = io.StringIO()
    found = with_before(result(forget_nll=1.0), result(forget_nll=3.5, new=1.0))
    Console(file=out, width=80).print(evaluation_tables(found))
    line = next(line for line in out.getvalue().splitlines() if "forget_nll" in line)
    assert [cell for cell in line.split() if cell[0] in "0123456789+"] == [
        "1.0000",
        "3.5000",
        "+2.5000",
    ]


def test_results_of_other_rows_are_not_compared() -> None:
    with pytest.raises(UserError, match="--before: was measured on other rows of forget"):
        with_before(result("sha256:b", a=1.0), result(a=1.0))


@pytest.mark.parametrize("content", ["[]", "{}", json.dumps({"suites": {}})])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "before.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="was not written by evaluate --out"):
        read_result(path)
