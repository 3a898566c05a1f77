"""Verbs that read run folders: how a sweep stands, what it found, and what that means."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from core.errors import UserError
from core.store.durable import commit_yaml, finite
from tuning.cli.application import AsJson, RunPath, app, examples, say, tell
from tuning.terminal import Shown, terminal

_MOST_INDENTED = 100
"""More trials are printed as JSON without line breaks, which takes a fraction of the time."""
_WIDEST = 2000
"""Signs of a line of a table that may be wider than the terminal."""
_ANEW_S = 10
"""How often `dashboard` copies the ledger."""


@app.command(epilog=examples("status runs/demo", "status runs/demo --json"))
def status(
    run: RunPath,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option(help="Show it anew every two seconds until the run ends.")
    ] = False,
) -> None:
    """Show how a sweep stands, from its ledger alone."""
    import time

    from tuning.results import status_json
    from tuning.run import load_run
    from tuning.views import status_text

    while True:
        found = load_run(run)
        tell(json.dumps(status_json(found), indent=1) if as_json else status_text(found))
        if not watch or found.state != "running":
            return
        time.sleep(2.0)


@app.command(epilog=examples("best runs/demo", "best runs/demo --top 3 --format json"))
def best(
    run: RunPath,
    top: Annotated[
        int | None, typer.Option(help="At most this many trials; all if absent.", min=1)
    ] = None,
    format_: Annotated[
        Literal["table", "json", "yaml", "csv"], typer.Option("--format", help="Output format.")
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="All columns of the table, wider than the terminal.")
    ] = False,
) -> None:
    """Show the best trials: feasible ones first, the Pareto front marked."""
    from tuning.results import best_json
    from tuning.run import load_run

    found = load_run(run)
    if as_json or format_ == "json":
        shown = best_json(found, top=top)
        is_long = len(shown["trials"]) > _MOST_INDENTED
        tell(json.dumps(shown, indent=None if is_long else 1))
    elif format_ == "yaml":
        tell(
            yaml.safe_dump(best_json(found, top=top), sort_keys=False, allow_unicode=True).rstrip()
        )
    elif format_ == "csv":
        order = [t["number"] for t in best_json(found, top=top)["trials"]]
        tell(found.to_dataframe().set_index("number").loc[order].to_csv().rstrip())
    else:
        from tuning.best_view import BestTable

        width = _WIDEST if wide else None
        table = BestTable(run=found, top=top or 10, is_wide=wide)
        terminal().print(Shown(table), width=width, soft_wrap=wide)


@app.command(epilog=examples("show runs/demo 3", "show runs/demo best --json"))
def show(
    run: RunPath,
    trial: Annotated[str, typer.Argument(help="Number of a trial, or best.", metavar="TRIAL")],
    as_json: AsJson = False,
) -> None:
    """Show a trial: parameters, curves, why it ended, how to run it again."""
    from tuning.run import load_run
    from tuning.views import pick_trial, trial_text

    found = load_run(run)
    record = pick_trial(found, trial)
    if as_json:
        (shown,) = found.rows([record])
        shown |= {"proposed_by": record.proposed_by, "history": found.history(record.number)}
        tell(json.dumps(finite(shown), indent=1))
    else:
        terminal().print(Shown(trial_text(found, record)))


@app.command(
    epilog=examples(
        "export runs/demo --out best", "export runs/demo --trial 3 --rank 8 --out three"
    )
)
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    trial: Annotated[str, typer.Option(help="Number of a trial, or best.")] = "best",
    base: Annotated[
        str | None,
        typer.Option(help="Name or path of the original model to record in the adapter."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Write the best approximation of this rank; needs model and data, to say what it costs.",
            min=1,
        ),
    ] = None,
) -> None:
    """Write a PEFT folder that stock PeftModel.from_pretrained loads on the original model."""
    from tuning.export import export_trial, refuse_folder
    from tuning.results import doubts
    from tuning.run import load_run
    from tuning.views import pick_trial

    found = load_run(run)
    record = pick_trial(found, trial)
    if rank is None:
        export_trial(found, record, out, base=base)
    else:
        from tuning.reduced import reduced_adapter

        refuse_folder(out)  # before it is measured
        with reduced_adapter(found, record, rank=rank) as reduced:
            export_trial(found, record, out, base=base, reduced=reduced)
        for line in (reduced.words, *(f"warning: {text}" for text in reduced.warnings)):
            say(line)
    say(f"wrote trial {record.number} to {out}: adapter, model card, trial.yaml")
    for line in doubts(found) if found.is_repetition else ():
        say(line)
    tell(str(out))


@app.command(epilog=examples("report runs/demo", "report runs/demo --live"))
def report(
    run: RunPath,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page on this machine while the sweep runs.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port of --live; any that is free if 0.", min=0, max=65535)
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write event files of each trial.")
    ] = False,
) -> None:
    """Write report/index.html, report.md and PNGs into the run folder, or serve the page as the sweep goes on."""
    if live:
        from threading import Event

        from tuning.live import serving

        with serving(run, port=port) as address:
            tell(address)
            say("the page looks for news itself; end with Ctrl-C")
            try:
                Event().wait()
            except KeyboardInterrupt:
                return
    from tuning.damage import left_out
    from tuning.report import write_report
    from tuning.run import load_run

    found = load_run(run)
    if tensorboard:
        from tuning.tensorboard import write_events

        say(f"look at the trials with: tensorboard --logdir {write_events(found)}")
    for line in left_out(found):
        say(f"warning: {line}")
    tell(str(write_report(found)))


@app.command(epilog=examples("dashboard runs/demo", "dashboard runs/demo --port 8080"))
def dashboard(
    run: RunPath,
    port: Annotated[
        int, typer.Option(help="Where to listen; any port that is free if 0.", min=0, max=65535)
    ] = 0,
) -> None:
    """Show the run's study in optuna-dashboard: on this machine alone, read only, on a copy of the ledger."""
    import time

    from tuning.dashboard import dashboard as served

    with served(run, port=port) as (address, update):
        tell(address)
        say(f"the copy is made anew every {_ANEW_S} seconds; end with Ctrl-C")
        try:
            while True:
                time.sleep(_ANEW_S)
                update()
        except KeyboardInterrupt:
            return


@app.command(
    epilog=examples("advise runs/demo", "advise runs/demo runs/demo-next --out next.yaml --json")
)
def advise(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs on one model and data.", metavar="RUN...")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the next sweep here, ready to launch.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what the trials show of each parameter, and make the next sweep."""
    from tuning.advice import advise as advise_on
    from tuning.advice_view import advice_text
    from tuning.pool import pooled
    from tuning.run import load_run

    if out is not None and out.exists():
        raise UserError(f"--out: {out} exists already; give a new file")
    found = advise_on(pooled([load_run(run) for run in runs]))
    if as_json:
        tell(json.dumps(finite(found.plain()), indent=1))
    else:
        terminal().print(Shown(advice_text(found)))
    if out is not None:
        commit_yaml(
            out, found.next_sweep, header=f"# The next sweep after {', '.join(found.runs)}.\n"
        )
        say(f"wrote {out}; launch it with: unlearn-tune sweep {out}")


@app.command(
    epilog=examples("compare runs/demo runs/demo-next", "compare runs/a runs/b runs/c --json")
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN RUN...")],
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: what each found, what cannot be told apart, and what differs."""
    from tuning.comparison import compared, comparison_text
    from tuning.run import load_run

    found = [load_run(run) for run in runs]
    if as_json:
        tell(json.dumps(compared(found), indent=1))
    else:
        terminal().print(Shown(comparison_text(found)))
