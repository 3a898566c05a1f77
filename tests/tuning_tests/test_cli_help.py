"""Help of the command line: every verb has examples that the parser takes, and no other is known."""

from __future__ import annotations

import re
import shlex

import pytest
from command_line import COMMANDS, Command

GROUPS = {verb: command for verb, command in COMMANDS.items() if hasattr(command, "commands")}
LEAVES = {verb: command for verb, command in COMMANDS.items() if verb not in GROUPS} | {
    f"{group} {verb}": leaf
    for group, command in GROUPS.items()
    for verb, leaf in command.commands.items()
}


@pytest.mark.parametrize("verb", sorted(LEAVES))
def test_help_has_two_examples_that_the_parser_takes(tune: Command, verb: str) -> None:
    words = verb.split()
    done = tune(*words, "--help")
    assert (done.status, done.err) == (0, "")
    examples = re.findall(rf"^ *unlearn-tune ({verb}\b.*?) *$", done.out, flags=re.MULTILINE)
    assert len(set(examples)) >= 2
    for example in examples:
        LEAVES[verb].make_context(verb, shlex.split(example)[len(words) :])


def test_help_names_every_verb(tune: Command) -> None:
    done = tune("--help")
    assert done.status == 0
    for verb in COMMANDS:
        assert verb in done.out


def test_an_unknown_verb_is_refused(tune: Command) -> None:
    done = tune("swep", "x.yaml")
    assert (done.status, done.out) == (2, "")
    assert "No such command 'swep'" in done.err
