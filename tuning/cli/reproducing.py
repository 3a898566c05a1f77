"""The verb that tests guidelines of the literature."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from tuning.cli.application import (
    RUNS,
    Address,
    InsecureFlag,
    app,
    examples,
    overrides_of,
    say,
    tell,
)

GUIDELINES = Path("docs/guidelines")
"""Where `reproduce` keeps what it measured, unless told otherwise."""


@app.command(epilog=examples("reproduce", "reproduce ihl-is-stable --preset quick"))
def reproduce(
    guideline: Annotated[
        str | None,
        typer.Argument(help="Number or id of a guideline; all are listed if absent."),
    ] = None,
    preset: Annotated[
        Literal["quick", "gpu", "full"],
        typer.Option(help="How large the sweeps are: two CPU cores, one GPU, or a cluster."),
    ] = "quick",
    out: Annotated[
        Path, typer.Option(help="Folder of the pages and of what was measured.")
    ] = GUIDELINES,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a fixed value of every sweep: key=value, dotted key."),
    ] = None,
    address: Address = None,
    allow_insecure_cluster: InsecureFlag = False,
    as_json: Annotated[bool, typer.Option("--json", help="The list, for scripts.")] = False,
) -> None:
    """List the tuning guidelines with their verdicts, or test one: run or reuse its sweeps, and write its page."""
    from tuning.guidelines.catalogue import pick
    from tuning.guidelines.page import list_text, measured_text, write_pages
    from tuning.guidelines.record import commit_record, judged, listing, record_path

    if guideline is not None:
        chosen = pick(guideline)
        chosen.use(preset)
        overrides = overrides_of(set_ or [])
        from tuning.driver import Interrupted
        from tuning.guidelines.measuring import measure
        from tuning.plan import Launch

        launch = Launch(address=address, allows_insecure=allow_insecure_cluster)
        try:
            record = measure(chosen, preset, runs=RUNS, launch=launch, overrides=overrides, say=say)
        except Interrupted as err:
            say("interrupted; nothing finished is lost. The same command goes on where it stopped")
            raise typer.Exit(128 + err.signal_number) from None
        commit_record(record_path(out, chosen), record)
        written = write_pages(out, judged(out))
        say(f"wrote {written[-1]} and the pages of {len(written) - 1} measured guidelines")
    found = judged(out)
    if as_json:
        tell(json.dumps(listing(found), indent=1))
    elif guideline is None:
        tell(list_text(found))
    else:
        tell(measured_text(next(one for one in found if one.guideline is chosen)))
