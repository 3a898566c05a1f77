"""Text from outside is shown as it is: never as markup, and never as an instruction to the terminal."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, changed, write
from rich.table import Table
from small_sweep import values

from tuning.terminal import Shown, shown, terminal

ROOT = Path(__file__).resolve().parents[2]

OUTSIDE = [
    pytest.param("[INST] {prompt} [/INST]", "[INST] {prompt} [/INST]", id="llama-2"),
    pytest.param("[/b] [red]x[/]", "[/b] [red]x[/]", id="markup-that-does-not-close"),
    pytest.param(":smile: [link=x]y", ":smile: [link=x]y", id="emoji-and-links"),
    pytest.param("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", id="colour"),
    pytest.param("\x1b]0;title\x07", r"\x1b]0;title\x07", id="title-of-the-window"),
    pytest.param("a\rb\x08c", r"a\x0db\x08c", id="back-over-the-line"),
    pytest.param("\x9b2J", r"\x9b2J", id="eight-bit-control"),
    pytest.param("\u202egpj.exe", r"\u202egpj.exe", id="turned-around"),
    pytest.param("half \ud83d", r"half \ud83d", id="half-a-character"),
    pytest.param("\N{SNOWMAN} \u65e5\u672c", "\N{SNOWMAN} \u65e5\u672c", id="any-script"),
]


@pytest.mark.parametrize(("text", "expected"), OUTSIDE)
def test_text_is_shown_as_it_is(text: str, expected: str) -> None:
    assert shown(text) == expected
    console = terminal()
    console.file = io.StringIO()
    table = Table(text, title=text)
    table.add_row(text)
    console.print(shown(text))
    console.print(Shown(table))
    written = console.file.getvalue()
    is_left_out = set("\x07\x08\r") & set(text)  # by the library of tables itself
    assert written.count(expected) == (1 if is_left_out else 4)
    assert shown(written) == written


def test_tabs_and_lines_stay() -> None:
    assert shown("a\tb\nc") == "a\tb\nc"


def test_everything_that_is_printed_goes_through_it() -> None:
    """What a ``print`` of the project takes is made by ``shown`` or ``Shown``, is JSON, or a constant."""
    for path in sorted((ROOT / "tuning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if ast.unparse(node.func).rpartition(".")[2] == "print":
                first = node.args[0]
                made_by = ast.unparse(first.func) if isinstance(first, ast.Call) else ""
                is_safe = made_by in ("shown", "Shown", "json.dumps")
                assert is_safe or isinstance(first, ast.Constant), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "template", ["[INST] {prompt} [/INST]", "[/x]{prompt}", "\x1b[31m{prompt}"]
)
def test_a_dry_run_prints_the_template(tune: Command, template: str, tiny_sweep: Any) -> None:
    file = write(
        changed(changed(tiny_sweep, "data.plain_template", template), "data.prompt_format", "plain")
    )
    done = tune("sweep", file, "--dry-run")
    assert done.status == 0, done.err
    assert template.removeprefix("\x1b").removesuffix("{prompt}") in done.out
    assert "\x1b" not in done.out


def test_an_error_shows_what_was_given_as_it_is(tune: Command) -> None:
    done = tune("validate", write(values({"method.forget_loss": "[red]\x1b[2J"})))
    assert done.status == 2
    assert r"[red]\x1b[2J" in done.err
