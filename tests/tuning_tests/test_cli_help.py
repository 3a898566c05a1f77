"""Help of the command line: every verb has examples that the parser takes, and no other is known."""

from __future__ import annotations

import re
import shlex

import pytest
from command_line import COMMANDS, Command

VERBS = sorted(verb for verb, command in COMMANDS.items() if not hasattr(command, "commands"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_two_examples_that_the_parser_takes(tune: Command, verb: str) -> None:
    done = tune(verb, "--help")
    assert (done.status, done.err) == (0, "")
    examples = re.findall(rf"^ *unlearn-tune ({verb}\b.*?) *$", done.out, flags=re.MULTILINE)
    assert len(set(examples)) >= 2
    for example in examples:
        COMMANDS[verb].make_context(verb, shlex.split(example)[1:])


def test_help_names_every_verb(tune: Command) -> None:
    done = tune("--help")
    assert done.status == 0
    for verb in COMMANDS:
        assert verb in done.out


def test_an_unknown_verb_is_refused(tune: Command) -> None:
    done = tune("swep", "x.yaml")
    assert (done.status, done.out) == (2, "")
    assert "No such command 'swep'" in done.err
