"""Commands that the pages show, as typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), ROOT / "search_spaces" / "README.md", *(ROOT / "docs").rglob("*.md")]
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?unlearn-tune +(?=\S)")


def commands_of_blocks(text: str) -> Iterator[str]:
    """Commands of a page's code blocks, from the program's name on, joined where they go on, without comments."""
    for block in BLOCK.findall(text):
        joined = re.sub(r"\s*\\\n\s*", " ", block)
        for line in joined.splitlines():
            yield from _typed(re.sub(r"\s+#.*$", "", line.strip().removeprefix("$ ")))


def commands(text: str) -> Iterator[str]:
    """Commands of a page's code blocks, then those in its text; without what is set for them."""
    yield from commands_of_blocks(text)
    for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text)):
        yield from _typed(" ".join(span.split()))


def _typed(code: str) -> Iterator[str]:
    begins = COMMAND.match(code)
    if begins:
        yield f"unlearn-tune {code[begins.end() :]}"
