"""``docs/architecture.md`` is true: its files exist, imports join its stops, its layers are the tested ones."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from import_graph import Graph, import_graph
from layers import LAYERS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WAYS = ("The way of a trial", "The way of a probe")
MOST_LINES = 60
"""Of one way, its heading included."""

_FOLDERS = ("core", "docs", "search_spaces", "tests", "tuning")
_NAMED = re.compile(rf"`((?:{'|'.join(_FOLDERS)})/[^`\s]*)`")
_STOP = re.compile(r"\d+\. (?:`(?P<file>[^`]+)`(?P<crosses> \(another process\))?: )?")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One numbered line of a way: its file, and whether it runs in another process than the stop before."""

    file: str
    crosses: bool


def section(page: str, title: str) -> list[str]:
    """Lines of a section, from its heading to the last before the next; empty if there is none."""
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[0].rstrip().splitlines() if found else []


def stops(lines: list[str]) -> list[Stop]:
    """Stops of a way; one that does not begin with a file has the empty name."""
    return [
        Stop(file=match["file"] or "", crosses=match["crosses"] is not None)
        for match in map(_STOP.match, lines)
        if match
    ]


def wrong_ways(page: str, titles: Collection[str], graph: Graph) -> list[str]:
    """What is wrong with the ways of a page.

    A way has at most 60 lines; each of its stops begins with a file of ours in backticks; of two stops in
    a row one imports the other, unless the later one is marked ``(another process)``.
    """
    found = []
    for title in titles:
        lines = section(page, title)
        way = stops(lines)
        if not way:
            found.append(f"{title}: no stop is found")
        if len(lines) > MOST_LINES:
            found.append(f"{title}: {len(lines)} lines, at most {MOST_LINES}")
        for number, stop in enumerate(way, start=1):
            if stop.file not in graph:
                found.append(f"{title}: stop {number} begins with no file: {stop.file!r}")
        for number, (before, stop) in enumerate(pairwise(way), start=2):
            if stop.crosses or not {before.file, stop.file} <= graph.keys():
                continue
            if stop.file not in graph[before.file] and before.file not in graph[stop.file]:
                found.append(
                    f"{title}: stop {number}: neither {before.file} nor {stop.file} imports the other"
                )
    return found


def missing_files(page: str, root: Path) -> list[str]:
    """Files that a page names and that do not exist; a pattern must mean at least one."""
    return [name for name in _NAMED.findall(page) if not any(root.glob(name.rstrip("/")))]


def table_of_layers(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """Names and files of the page's layers, in its order."""
    rows = [line.split("|") for line in section(page, "Layers") if line.startswith("|")]
    return [(cells[1].strip(), tuple(re.findall(r"`([^`]+)`", cells[2]))) for cells in rows[2:]]


def test_the_ways_are_joined_by_imports() -> None:
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in ("core", "tuning", "search_spaces")
        for path in (ROOT / package).rglob("*.py")
    }
    assert wrong_ways(PAGE, WAYS, import_graph(texts)) == []


def test_the_files_of_the_page_exist() -> None:
    assert missing_files(PAGE, ROOT) == []


def test_the_layers_of_the_page_are_the_tested_ones() -> None:
    assert table_of_layers(PAGE) == list(LAYERS.items())


def test_the_glossary_holds_what_the_ways_say() -> None:
    ways = " ".join(" ".join(section(PAGE, title)) for title in WAYS)
    nouns = [row.split("|")[1].strip() for row in section(PAGE, "Glossary") if row[:1] == "|"]
    assert nouns[2:], "no glossary"
    assert [noun for noun in nouns[2:] if noun not in ways] == []


INVENTED: Graph = {
    "core/worker.py": frozenset({"core/steps.py", "core/meter.py"}),
    "core/steps.py": frozenset({"core/engine.py"}),
    "core/engine.py": frozenset(),
    "core/meter.py": frozenset(),
    "tuning/bridge.py": frozenset(),
}
SOUND = """
## A way

1. `core/worker.py`: begins; see `history.jsonl`
   on two lines.
2. `core/steps.py`: steps.
3. `core/worker.py`: goes on.
4. `tuning/bridge.py` (another process): hears of it.

## Another section

1. Not a stop of the way.
"""


def test_a_sound_page_is_reported_sound() -> None:
    assert wrong_ways(SOUND, ["A way"], INVENTED) == []


@pytest.mark.parametrize(
    ("line", "planted", "expected"),
    [
        pytest.param(
            "2. `core/steps.py`",
            "2. `core/engine.py`",
            [
                "A way: stop 2: neither core/worker.py nor core/engine.py imports the other",
                "A way: stop 3: neither core/engine.py nor core/worker.py imports the other",
            ],
            id="not-joined",
        ),
        pytest.param(
            "`tuning/bridge.py` (another process)",
            "`tuning/bridge.py`",
            ["A way: stop 4: neither core/worker.py nor tuning/bridge.py imports the other"],
            id="not-marked",
        ),
        pytest.param(
            "2. `core/steps.py`",
            "2. `core/gone.py`",
            ["A way: stop 2 begins with no file: 'core/gone.py'"],
            id="no-such-file",
        ),
        pytest.param(
            "2. `core/steps.py`: steps",
            "2. Steps, in `core/steps.py`",
            ["A way: stop 2 begins with no file: ''"],
            id="no-file-in-front",
        ),
        pytest.param(
            "2. `core/steps.py`: steps.",
            "2. `core/steps.py`: steps." + "\n   More." * 60,
            ["A way: 67 lines, at most 60"],
            id="too-long",
        ),
        pytest.param("## A way", "## Away", ["A way: no stop is found"], id="no-such-way"),
        pytest.param(
            "2. `core/steps.py`: steps.\n",
            "2. `core/worker.py`: again.\n",
            [
                "A way: stop 2: neither core/worker.py nor core/worker.py imports the other",
                "A way: stop 3: neither core/worker.py nor core/worker.py imports the other",
            ],
            id="twice-in-a-row",
        ),
    ],
)
def test_a_wrong_stop_is_named(line: str, planted: str, expected: list[str]) -> None:
    page = SOUND.replace(line, planted)
    assert page != SOUND
    assert wrong_ways(page, ["A way"], INVENTED) == expected


def test_a_file_that_is_named_in_passing_must_exist(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "worker.py").touch()
    page = (
        "`core/worker.py`, `core/*.py`, `core/`, `core/gone.py`, `tuning/*.py`, `adapter/`, `x.py`"
    )
    assert missing_files(page, tmp_path) == ["core/gone.py", "tuning/*.py"]


def test_layers_are_read_in_their_order() -> None:
    page = (
        "## Layers\n\nText.\n\n| layer | files | what |\n|---|---|---|\n| b | `core/b.py` | x |\n"
        "| a | `core/a.py`, `core/c/*.py` | `y` |\n\n## Next\n\n| no | `core/d.py` | |\n"
    )
    assert table_of_layers(page) == [("b", ("core/b.py",)), ("a", ("core/a.py", "core/c/*.py"))]
