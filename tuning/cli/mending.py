"""Verbs for damaged and failed parts of a run."""

import json
from typing import Annotated

import typer

from tuning.cli.application import AsJson, LedgerUrl, RunPath, app, examples, tell


@app.command(epilog=examples("repair runs/demo --dry-run", "repair runs/demo --json"))
def repair(
    run: RunPath,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; change nothing.")] = False,
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Mend the ledger of a run from what its trials committed; of a file, the old one is kept beside."""
    from tuning.repair import repair as mended

    made = mended(run, is_dry=dry_run, ledger=ledger)
    tell(json.dumps(made.plain(), indent=1) if as_json else "\n".join(made.lines()))
