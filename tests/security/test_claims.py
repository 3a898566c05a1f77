"""What SECURITY.md claims is held by the tests that it names, and each file of this folder holds a claim."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

ROW = re.compile(r"^\| (?P<claim>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?")


def claims() -> dict[str, list[tuple[str, list[str]]]]:
    """Files and tests by claim; no tests named are all of the file."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [row for row in ROW.finditer(text) if "`" in row["tests"]]
    return {
        row["claim"]: [
            (file, re.findall(r"\w+", tests)) for file, tests in NAMED.findall(row["tests"])
        ]
        for row in rows
    }


def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_claim_names_tests_that_exist() -> None:
    found = claims()
    assert len(found) >= 20
    for claim, places in found.items():
        assert places, claim
        for file, tests in places:
            path = ROOT / "tests" / file
            assert path.is_file(), (claim, file)
            there = names_of_tests(path)
            assert there
            assert set(tests) <= there, (claim, set(tests) - there)


def test_each_file_of_tests_here_holds_a_claim() -> None:
    named = {file for places in claims().values() for file, _ in places}
    here = {f"security/{path.name}" for path in HERE.glob("test_*.py")}
    assert here <= named
