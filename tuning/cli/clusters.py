"""Verbs of a cluster: start it, run sweeps on it, look at it, end it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigError, UserError
from tuning.cli.application import (
    RUNS,
    AsJson,
    NewName,
    Trials,
    checked_name,
    examples,
    group,
    overrides_of,
    say,
    tell,
)
from tuning.files import load_sweep

if TYPE_CHECKING:
    from tuning.cluster.commands import Asked, Site

cluster = group("cluster", help_="Start a Ray cluster, run sweeps on it, look at it, end it.")

File = Annotated[
    Path | None,
    typer.Argument(
        help="Cluster file of Ray's launcher; cluster.yaml if absent.", metavar="[FILE]"
    ),
]
Launcher = Annotated[Path, typer.Argument(help="Cluster file of Ray's launcher.", metavar="[FILE]")]
Address = Annotated[
    str | None,
    typer.Option(help="Instead of FILE: a dashboard that is reached already, http://HOST:PORT."),
]
WorkFolder = Annotated[
    str | None, typer.Option(help="Where runs lie on the head; metadata.work_folder if absent.")
]
Program = Annotated[
    str | None, typer.Option(help="unlearn-tune on the head; metadata.program if absent.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the commands; run none.")]


@cluster.command(
    "up", epilog=examples("cluster up cluster.yaml", "cluster up clusters/gcp.yaml --dry-run")
)
def up(
    file: Launcher = Path("cluster.yaml"), dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Check the file, make the token where there is none, and start the head; workers come with trials."""
    from tuning.cluster import validate_cluster_file
    from tuning.cluster.commands import Asked, composed
    from tuning.cluster.control import passed_on
    from tuning.cluster.sites import make_token, site_of

    problems = validate_cluster_file(file)
    if problems:
        raise ConfigError(str(file), problems)
    site, _ = site_of(file, address=None, needs_folder=False)
    if dry_run:
        _tell_commands(Asked(verb="up"), site, as_json=as_json)
        return
    if site.token_file is not None and make_token(site.token_file):
        say(f"made the cluster's token: {site.token_file}")
    (command,) = composed(Asked(verb="up"), site)
    status = passed_on(command)
    if status:
        raise UserError(f"{command.shown}: ended with status {status}; see above")
    done = {"file": str(file), "token": str(site.token_file or "")}
    tell(json.dumps(done) if as_json else f"the head of {file} is up")


@cluster.command(
    "submit",
    epilog=examples(
        "cluster submit search_spaces/demo.yaml --cluster cluster.yaml --supervise",
        "cluster submit search_spaces/demo.yaml --name demo --trials 24 --dry-run",
    ),
)
def submit(
    spec: Annotated[Path, typer.Argument(help="Sweep file.", metavar="SPEC")],
    file: Annotated[
        Path | None,
        typer.Option("--cluster", help="Cluster file of Ray's launcher; cluster.yaml if absent."),
    ] = None,
    name: NewName = None,
    trials: Trials = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Fix a value: key=value, dotted key.")
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on with the run, if it was begun.")
    ] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Stay, and go on with the run if its job dies.")
    ] = False,
    attempts: Annotated[
        int, typer.Option(help="Jobs that --supervise submits, at most.", min=1)
    ] = 20,
    every: Annotated[
        float, typer.Option(help="Seconds between looks of --supervise.", min=0.1)
    ] = 60.0,
    storage: Annotated[
        str | None,
        typer.Option(help="Where trials are committed, by URL; metadata.storage if absent."),
    ] = None,
    address: Address = None,
    work_folder: WorkFolder = None,
    program: Program = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Ship a sweep file, and the data that it names by relative paths, and run it on the head as a job."""
    from tuning.cluster.commands import Asked, job_id, sweep_script
    from tuning.cluster.control import begin, reached
    from tuning.cluster.control import supervise as supervised
    from tuning.cluster.shipping import shipped_files
    from tuning.cluster.sites import site_of

    loaded = load_sweep(spec, overrides=overrides_of(set_ or []))
    run = checked_name(name or loaded.name)
    options = [*(["--trials", str(trials)] if trials else [])]
    options += [word for pair in set_ or [] for word in ("--set", pair)]
    site, _ = site_of(
        file, address=address, work_folder=work_folder, program=program, storage=storage
    )
    if dry_run:
        folder = "FOLDER"
        _tell_commands(
            Asked(verb="submit", job=job_id(run, 1), folder=folder),
            site,
            as_json=as_json,
            more={
                "shipped": [str(path) for path in (spec.resolve(), *shipped_files(spec))],
                "script": sweep_script(
                    site, spec=spec.name, name=run, options=options, goes_on=go_on
                ),
            },
        )
        return
    with reached(site):
        job = begin(site, spec, name=run, options=options, goes_on=go_on)
    say(f"{job} is submitted; look at it with: unlearn-tune cluster logs {run}")
    if not supervise:
        tell(json.dumps({"job": job, "run": run}) if as_json else job)
        return
    ended = supervised(site, spec, name=run, options=options, most=attempts, every_s=every, say=say)
    found = {"job": ended.name, "run": run, "status": ended.status, "exit_code": ended.exit_code}
    in_words = f"{ended.name}: {ended.status.lower()}, exit status {ended.exit_code}"
    tell(json.dumps(found) if as_json else in_words)
    if ended.status != "SUCCEEDED":
        raise typer.Exit(ended.exit_code if ended.exit_code in (2, 3, 4) else 4)


@cluster.command(
    "status",
    epilog=examples(
        "cluster status cluster.yaml", "cluster status --address http://127.0.0.1:8265 --json"
    ),
)
def status(
    file: File = None,
    address: Address = None,
    work_folder: WorkFolder = None,
    program: Program = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Show nodes, jobs, how runs stand, and what it has cost and will cost."""
    from tuning.cluster.commands import ASKING, Asked
    from tuning.cluster.control import look, reached
    from tuning.cluster.sites import site_of
    from tuning.cluster.view import cluster_json, cluster_text

    site, config = site_of(file, address=address, work_folder=work_folder, program=program)
    if dry_run:
        _tell_commands(Asked(verb="status", job=ASKING, folder="FOLDER"), site, as_json=as_json)
        return
    with reached(site):
        looked = look(site)
    if as_json:
        tell(json.dumps(cluster_json(looked, config), indent=1))
    else:
        tell(cluster_text(looked, config))


@cluster.command(
    "logs",
    epilog=examples("cluster logs demo --follow", "cluster logs --cluster cluster.yaml --json"),
)
def logs(
    name: Annotated[
        str | None, typer.Argument(help="Run or job; the latest job if absent.", metavar="[NAME]")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--cluster", help="Cluster file of Ray's launcher; cluster.yaml if absent."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
    address: Address = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Print what the job of a run has written."""
    from tuning.cluster.commands import Asked, job_id, logs_command
    from tuning.cluster.control import jobs_of, latest, passed_on, ran, reached
    from tuning.cluster.sites import site_of

    if follow and as_json:
        raise UserError("--json: a log that is followed has no end; leave out --follow or --json")
    site, _ = site_of(file, address=address, needs_folder=False)
    if dry_run:
        _tell_commands(
            Asked(verb="logs", job=job_id(name or "NAME", 1), follows=follow), site, as_json=as_json
        )
        return
    with reached(site):
        job = latest(jobs_of(site), name).name
        command = logs_command(site, job, follow)
        if as_json:
            tell(json.dumps({"job": job, "log": ran(command)}))
        elif passed_on(command):
            raise UserError(f"{command.shown}: the log cannot be read; see above")


@cluster.command(
    "down", epilog=examples("cluster down cluster.yaml", "cluster down cluster.yaml --yes --json")
)
def down(
    file: Launcher = Path("cluster.yaml"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, whatever goes on or lies only there.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """End every machine, after a warning of runs that go on and of results that lie only there."""
    from tuning.cluster.commands import ASKING, Asked, composed, stop_command
    from tuning.cluster.control import jobs_of, passed_on, ran, reached, runs_of
    from tuning.cluster.sites import site_of

    site, _ = site_of(file, address=None)
    if dry_run:
        _tell_commands(Asked(verb="down", job=ASKING, folder="FOLDER"), site, as_json=as_json)
        return
    going_on: list[str] = []
    runs: list[dict[str, Any]] | None = None
    try:
        with reached(site):
            going_on = [job.name for job in jobs_of(site) if job.goes_on]
            runs = runs_of(site)
    except UserError as err:
        say(f"warning: {err}")
    left = _warned(site, going_on, runs)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("--yes: nobody is there to ask; look at the warnings, then give --yes")
        typer.confirm(f"end all machines of {file}?", abort=True, err=True)
    if going_on:
        with reached(site):
            for job in going_on:
                ran(stop_command(site, job))
    command = composed(Asked(verb="down"), site)[-1]
    ended = passed_on(command)
    if ended:
        raise UserError(
            f"{command.shown}: ended with status {ended}; machines may go on costing money"
        )
    done = {"file": str(file), "stopped": going_on, "only_there": left}
    tell(json.dumps(done) if as_json else f"the machines of {file} have ended")


def _warned(site: "Site", going_on: list[str], runs: list[dict[str, Any]] | None) -> list[str]:
    """Say what would be lost; names of the runs whose results lie only there."""
    from tuning.cluster.commands import fetch_command
    from tuning.cluster.control import only_there

    for job in going_on:
        say(f"warning: job {job} goes on, and will be ended; its trials can be gone on with")
    if runs is None:
        say("warning: the head did not say which runs lie there; look at them with: cluster status")
    left = only_there(runs or [], site=site, here=RUNS)
    for run in left:
        say(f"warning: results of {run} lie only there; copy: {fetch_command(site, run).shown}")
    return left


def _tell_commands(
    asked: "Asked", site: "Site", *, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    from tuning.cluster.commands import BEGIN, composed

    shown = [command.shown for command in composed(asked, site)]
    if as_json:
        tell(json.dumps({"commands": shown} | (more or {}), indent=1))
        return
    for path in (more or {}).get("shipped", []):
        tell(f"# in FOLDER: {path}")
    if more and "script" in more:
        tell(f"# in FOLDER, {BEGIN}:")
        tell("\n".join(f"#   {line}" for line in more["script"].splitlines()))
    for line in shown:
        tell(line)
