"""Every command that a page shows is one that the command line takes: verbs, options and the number of arguments."""

from __future__ import annotations

import re
import shlex

import pytest
from shown_commands import PAGES, ROOT, commands
from typer.main import get_command

from tuning.cli import app

SHOWN = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}")
    for page in sorted(PAGES)
    for command in dict.fromkeys(commands(page.read_text("utf-8")))
]


def parse(command: str) -> None:
    """As the command line would, without running it; of a verb alone, only that it exists.

    Pages name verbs in their text, and `RUN` is as good a folder as any; a placeholder of one letter is a number.
    """
    words = [re.sub(r"^[A-Z]$", "1", word) for word in shlex.split(command)[1:]]
    group = get_command(app)
    context = group.make_context("unlearn-tune", [], resilient_parsing=True)
    while words and hasattr(group, "commands"):
        assert words[0] in group.commands, f"no verb {words[0]!r}"
        group, words = group.commands[words[0]], words[1:]
    if words:
        group.make_context(group.name, words, parent=context)


@pytest.mark.parametrize("command", SHOWN)
def test_a_shown_command_is_one_that_is_taken(command: str) -> None:
    parse(command)


PAGE = """
Text names `unlearn-tune show` and `unlearn-tune
best RUN --top K`, but `best` alone and `/mnt/unlearn-tune` are no commands.

```
$ unlearn-tune status runs/demo   # at once
PLACE=a OTHER=b unlearn-tune sweep one.yaml \\
    --trials 3
kubectl logs job/unlearn-tune
```
`.venv/bin/unlearn-tune doctor`, `OMP_NUM_THREADS=1 unlearn-tune sweep ...`
"""


def test_commands_are_found_in_blocks_and_in_the_text() -> None:
    assert list(commands(PAGE)) == [
        "unlearn-tune status runs/demo",
        "unlearn-tune sweep one.yaml --trials 3",
        "unlearn-tune show",
        "unlearn-tune best RUN --top K",
        "unlearn-tune doctor",
        "unlearn-tune sweep ...",
    ]


def test_there_are_commands_on_the_pages() -> None:
    assert len(SHOWN) > 100


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("best runs/demo --no-such", "no-such"),
        ("bets", "no verb 'bets'"),
        ("cluster upp cluster.yaml", "no verb 'upp'"),
        ("best RUN --top MANY", "valid integer"),
        ("status RUN OTHER", "OTHER"),
    ],
)
def test_what_is_not_taken_is_found(command: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        parse(f"unlearn-tune {command}")
