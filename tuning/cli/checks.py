"""Verbs that check: a file, this machine, the cache."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tuning.cli.application import REFUSED, RUNS, AsJson, app, examples, group, tell


@app.command(epilog=examples("validate search_spaces/demo.yaml", "validate cluster.yaml"))
def validate(
    file: Annotated[
        Path,
        typer.Argument(
            help="A sweep, trial, preparation, guideline or cluster file.", metavar="FILE"
        ),
    ],
) -> None:
    """Check a file and name every problem at once."""
    from tuning.validate import validate_file

    tell(validate_file(file))


@app.command(epilog=examples("doctor", "doctor --json"))
def doctor(
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, disk, cache and model presence, with a fix for each problem."""
    from tuning.doctor import examine

    checks = examine()
    if as_json:
        tell(json.dumps([vars(c) for c in checks], indent=1))
    else:
        for check in checks:
            tell(
                f"{check.status:5} {check.name}: {check.found}"
                + (f"; {check.fix}" if check.fix else "")
            )
    if any(c.status == "error" for c in checks):
        raise typer.Exit(REFUSED)


cache = group("cache", help_="Show and clear the cache of shared work.")


@cache.command("list", epilog=examples("cache list", "cache list --json"))
def cache_list(
    as_json: Annotated[bool, typer.Option("--json", help="Every entry, for scripts.")] = False,
) -> None:
    """Show what lies in the cache: by kind, with its size, when it was used, and what it was made from."""
    from core.store.upkeep import entries
    from tuning.cached import cache_json, cache_text

    found = entries()
    tell(json.dumps(cache_json(found, RUNS), indent=1) if as_json else cache_text(found, RUNS))


@cache.command(
    "clear",
    epilog=examples("cache clear --kind factors --kind importance", "cache clear --unused-for 30d"),
)
def cache_clear(
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind, as `cache list` names it; repeatable.")
    ] = None,
    unused_for: Annotated[
        str | None, typer.Option(help="Only what was not used for so long: 12h, 30d, 2w.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All kinds, models that `prepare` trained included.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was removed, for scripts.")] = False,
) -> None:
    """Remove shared work from the cache, and say what; what a sweep that runs has used stays."""
    from tuning.cached import clear, cleared_json, cleared_text

    removed, in_use = clear(kinds=kind or [], unused_for=unused_for, everything=everything)
    if as_json:
        tell(json.dumps(cleared_json(removed, in_use), indent=1))
    else:
        tell(cleared_text(removed, in_use))
