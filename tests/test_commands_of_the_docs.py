"""Every command that a page shows is one that the command line takes: verbs, options and the number of arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from tuning.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "search_spaces" / "README.md", *(ROOT / "docs").rglob("*.md")]


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks that begin with the program, joined where they go on, without their comments."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            typed = line.strip().removeprefix("$ ")
            if typed.startswith("unlearn-tune "):
                yield re.sub(r"\s+#.*$", "", typed)


SHOWN = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}")
    for page in sorted(PAGES)
    for command in dict.fromkeys(commands(page.read_text("utf-8")))
]


def parse(command: str) -> None:
    """As the command line would, without running it."""
    words = shlex.split(command)[1:]
    group = get_command(app)
    context = group.make_context("unlearn-tune", [], resilient_parsing=True)
    while hasattr(group, "commands"):
        assert words[0] in group.commands, f"no verb {words[0]!r}"
        group, words = group.commands[words[0]], words[1:]
    group.make_context(group.name, words, parent=context)


@pytest.mark.parametrize("command", SHOWN)
def test_a_shown_command_is_one_that_is_taken(command: str) -> None:
    parse(command)


def test_there_are_commands_on_the_pages() -> None:
    assert len(SHOWN) > 20


def test_an_unknown_option_is_found() -> None:
    with pytest.raises(Exception, match="no-such"):
        parse("unlearn-tune best runs/demo --no-such")
