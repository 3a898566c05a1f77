"""The list of doors is whole: what lets something in is called where the list says, and nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from doors import DOORS

ROOT = Path(__file__).resolve().parents[2]
CALLS = {
    path.relative_to(ROOT).as_posix(): {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    for package in ("core", "tuning")
    for path in sorted((ROOT / package).rglob("*.py"))
}


@pytest.mark.parametrize("name", DOORS)
def test_a_door_stands_where_the_list_says_and_nowhere_else(name: str) -> None:
    door = DOORS[name]
    found = {file for file, calls in CALLS.items() if any(map(door.lets_in, calls))}
    assert found == door.files


@pytest.mark.parametrize("name", DOORS)
def test_what_comes_through_a_door_has_tests(name: str) -> None:
    assert (ROOT / "tests" / DOORS[name].tests).is_file()


def test_the_page_on_architecture_has_every_door() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## Doors\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([^|]+?) \| `", section, re.MULTILINE) == list(DOORS)
