"""The application: what all verbs share, from the options that several take to where their words go."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from core.errors import ConfigError, UserError
from core.text.redaction import redacted
from tuning import strict_yaml
from tuning.config import RUN_NAME
from tuning.terminal import shown

app = typer.Typer(
    name="unlearn-tune",
    help="Tune hyperparameters of LLM unlearning: launch sweeps, inspect the best, reproduce.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNS = Path("runs")
"""Where runs lie that are named, not given as a folder."""
REFUSED, NO_FEASIBLE, FAILED = 2, 3, 4
"""Exit statuses; 0 is done, and 128 plus its number a signal's."""

AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
EndsAsJson = Annotated[bool, typer.Option("--json", help="End with the result as JSON.")]
Address = Annotated[str | None, typer.Option(help="Address of an existing Ray cluster.")]
LedgerUrl = Annotated[
    str | None,
    typer.Option(
        help="PostgreSQL database of the ledger; UNLEARN_TUNE_LEDGER, or a file of the run folder, if absent.",
        metavar="URL",
    ),
]
NewName = Annotated[
    str | None, typer.Option(help="Run folder below runs/; the sweep's name if absent.")
]
Trials = Annotated[int | None, typer.Option(help="Trials instead of budget.trials.", min=1)]
InsecureFlag = Annotated[
    bool, typer.Option("--allow-insecure-cluster", help="Also join one that asks for no token.")
]
RunPath = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo.", metavar="RUN")]


def group(name: str, *, help_: str) -> typer.Typer:
    """Verbs below a verb."""
    made = typer.Typer(help=help_, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(made, name=name)
    return made


def examples(*lines: str) -> str:
    """The end of a verb's help: commands that run as they stand."""
    return "Examples:\n\n" + "\n\n".join(f"  unlearn-tune {line}" for line in lines)


def checked_name(name: str) -> str:
    """A name for a run folder.

    Raises:
        UserError: If it is none.
    """
    if not re.fullmatch(RUN_NAME, name):
        raise UserError(
            f"--name: {name!r} must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return name


def overrides_of(pairs: list[str]) -> dict[str, Any]:
    """What ``--set`` gave, by key.

    Raises:
        UserError: If a pair is not ``key=value``, or the value not YAML.
    """
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set: key=value is expected, got {pair!r}")
        try:
            found[key], _ = strict_yaml.load(text, allows_aliases=False)
        except yaml.YAMLError as err:
            raise ConfigError(f"--set {key}", [f"not a YAML value: {text!r}"]) from err
    return found


def tell(text: str) -> None:
    """Write a result."""
    print(shown(text))


def say(text: str) -> None:
    """Write what is no result."""
    print(shown(redacted(text)), file=sys.stderr)
