"""Verbs that run trials over and over: begin a sweep, go on with one, repeat its finalists, make a file for one."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UserError
from tuning.cli.application import (
    FAILED,
    NO_FEASIBLE,
    RUNS,
    Address,
    AsJson,
    InsecureFlag,
    LedgerUrl,
    NewName,
    RunPath,
    Trials,
    app,
    checked_name,
    examples,
    overrides_of,
    say,
    tell,
)
from tuning.config import SweepSpec
from tuning.files import load_sweep
from tuning.storage.address import below, checked, is_url, split_run
from tuning.terminal import Shown, terminal

if TYPE_CHECKING:
    from tuning.events import Watcher
    from tuning.initial import Answers
    from tuning.run import Run

BestAsJson = Annotated[bool, typer.Option("--json", help="End with `best` as JSON.")]
GRACE_S = 20.0
"""Less than clouds and schedulers give before they kill: 30 s on GCP, Kubernetes and Slurm, 120 s on AWS."""
Grace = Annotated[
    float,
    typer.Option(
        help="Seconds that running trials have to come to their next probe when Ctrl-C or SIGTERM ends the sweep.",
        min=0.0,
    ),
]


@app.command(
    epilog=examples(
        "sweep search_spaces/demo.yaml --name demo",
        "sweep search_spaces/demo.yaml --trials 4 --dry-run",
    )
)
def sweep(
    spec: Annotated[Path, typer.Argument(help="Sweep file.", metavar="SPEC")],
    name: NewName = None,
    trials: Trials = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Fix a value, also of a searched field: key=value, dotted key."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Show space, samples and estimates; start nothing.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Address of an existing Ray cluster, such as auto.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Keep a copy in URL/NAME (s3://, gs:// or a folder), which workers write to.",
            metavar="URL",
        ),
    ] = None,
    ledger: LedgerUrl = None,
    grace: Grace = GRACE_S,
    cluster: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: a cluster's file, for its size and its prices."),
    ] = None,
    allow_insecure_cluster: InsecureFlag = False,
    as_json: BestAsJson = False,
) -> None:
    """Start a sweep in runs/NAME."""
    from tuning.validate import refuse_missing

    overrides = overrides_of(set_ or [])
    if trials is not None:
        overrides["budget.trials"] = trials
    loaded = load_sweep(spec, overrides=overrides)
    run_dir = RUNS / checked_name(name or loaded.name)
    if cluster is not None and not dry_run:
        raise UserError(
            f"--cluster: only --dry-run takes it, got {cluster}; run the sweep there with `unlearn-tune cluster submit`"
        )
    if address is None and cluster is None:  # a cluster may have what this machine has not
        refuse_missing(loaded, where=str(spec))
    if dry_run:
        from tuning.dry_run import show_dry_run
        from tuning.resources import LEFT_FILE

        if cluster is None and address is not None and LEFT_FILE.is_file():
            cluster = LEFT_FILE
        show_dry_run(loaded, run_dir, as_json=as_json, cluster_file=cluster)
        return
    from tuning.plan import Launch
    from tuning.sameness import refuse_existing
    from tuning.sweep import run_sweep

    refuse_existing(loaded, run_dir)
    if storage is not None:
        storage = checked(storage)
        say(f"kept in: {below(storage, run_dir.name)}   which `unlearn-tune resume` takes, too")
    say(f"run folder: {run_dir}   go on after a stop with: unlearn-tune resume {run_dir}")

    def go(watcher: "Watcher") -> "Run":
        launch = Launch(
            address=address,
            grace_s=grace,
            ledger=ledger,
            storage=storage,
            allows_insecure=allow_insecure_cluster,
        )
        return run_sweep(loaded, run_dir, file=spec, launch=launch, watcher=watcher)

    _drive(go, loaded, run_dir, target=loaded.budget.trials, done=0, as_json=as_json)


@app.command(
    epilog=examples(
        "init mine.yaml --model package:smollm2 --forget forget.jsonl --retain retain.jsonl --approximate other.jsonl",
        "init mine.yaml",
    )
)
def init(
    out: Annotated[Path, typer.Argument(help="Sweep file to write.", metavar="OUT")],
    model: Annotated[str | None, typer.Option(help="package:, hub: or a model folder.")] = None,
    forget: Annotated[str | None, typer.Option(help="What must go: a file or a name.")] = None,
    retain: Annotated[str | None, typer.Option(help="Text of its domain that must stay.")] = None,
    approximate: Annotated[
        str | None, typer.Option(help="Text like the forget set's that the model never saw.")
    ] = None,
    retain_only: Annotated[
        str | None, typer.Option(help="Instead: a model that never saw the forget set.")
    ] = None,
    general: Annotated[str | None, typer.Option(help="Ordinary text; shipped if absent.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="A shipped sweep file to begin with: ihl, npo, loku, methods, ..."),
    ] = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="Column with the prompt, in the files that have it.")
    ] = None,
    answer_field: Annotated[
        str | None, typer.Option(help="Column with the answer, in the same files.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Column with a whole text, in the files that have it.")
    ] = None,
) -> None:
    """Write a commented sweep file for your own model and data; asks for what is not given."""
    from tuning.columns import named_columns
    from tuning.initial import DEFAULT_GENERAL, Answers, write_sweep

    fields = named_columns(prompt=prompt_field, answer=answer_field, text=text_field)

    def answer(given: str | None, option: str, question: str, default: str | None = None) -> str:
        if given is not None:
            return given
        if not sys.stdin.isatty():
            if default is None:
                raise UserError(f"{option}: needed, and nobody is there to ask: {question}")
            return default
        return str(typer.prompt(question, default=default, err=True))

    model = answer(model, "--model", "the model: package:smollm2, hub:ORG/NAME or a folder")
    forget = answer(
        forget, "--forget", "what must go: a file (.jsonl, .csv, .txt, ...) or hub:ORG/NAME"
    )
    retain = answer(retain, "--retain", "text of its domain that must stay")
    if retain_only is None and approximate is None:
        question = "text like the forget set's that the model never saw"
        approximate = answer(None, "--approximate", f"{question} (or give --retain-only)")
    general = answer(general, "--general", "ordinary text of other domains", DEFAULT_GENERAL)
    method = answer(method, "--method", "method (the name of a shipped sweep file)", "ihl")
    answers = Answers(
        model=model,
        forget=forget,
        retain=retain,
        approximate=approximate,
        retain_only=retain_only,
        general=general,
        method=method,
        fields=fields,
    )
    if sys.stdin.isatty():
        answers = _with_asked_columns(answers)
    write_sweep(answers, out)
    say(f"wrote {out}; look at it, then: unlearn-tune sweep {out} --dry-run")
    tell(str(out))


def _with_asked_columns(answers: "Answers") -> "Answers":
    """Ask for the columns of each file that has neither known nor named ones."""
    from tuning.columns import named_columns, unknown_columns

    for role, source in answers.sources.items():
        columns = unknown_columns(source, role=role, named=answers.fields)
        if not columns:
            continue
        listed = ", ".join(map(repr, columns))
        say(f"{source} has the columns {listed}, and none is known to hold its text")
        prompt = _asked_column("the column with the prompt, - for whole texts", [*columns, "-"])
        if prompt == "-":
            text = _asked_column("the column with the text", columns)
            named = named_columns(prompt=None, answer=None, text=text)
        else:
            reply = _asked_column("the column with the answer", columns)
            named = named_columns(prompt=prompt, answer=reply, text=None)
        answers = replace(answers, fields=(*answers.fields, *named))
    return answers


def _asked_column(question: str, known: Sequence[str]) -> str:
    """One of the known columns; asked for again until it is one."""

    def checked_column(said: str) -> str:
        if said not in known:
            raise typer.BadParameter(f"one of {', '.join(map(repr, known))} expected, got {said!r}")
        return said

    return str(typer.prompt(question, value_proc=checked_column, err=True))


@app.command(epilog=examples("resume runs/demo", "resume s3://bucket/runs/demo --trials 24"))
def resume(
    run: Annotated[
        str,
        typer.Argument(
            help="A run folder, such as runs/demo, or where a storage holds one: URL/NAME.",
            metavar="RUN",
        ),
    ],
    trials: Annotated[
        int | None, typer.Option(help="New number of trials of the whole sweep.", min=1)
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(
            help="Sweep file to compare with the run's; refused if it changed, but for more budget.trials."
        ),
    ] = None,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the run is kept; needed if its folder is lost, or was not kept so far.",
            metavar="URL",
        ),
    ] = None,
    ledger: LedgerUrl = None,
    takeover: Annotated[
        bool,
        typer.Option(help="Go on also if another driver holds the run: it ends at its next write."),
    ] = False,
    grace: Grace = GRACE_S,
    allow_insecure_cluster: InsecureFlag = False,
    as_json: BestAsJson = False,
) -> None:
    """Go on exactly where a sweep stopped; with more trials, extend it."""
    from tuning.extending import asked_trials, remarks
    from tuning.run import load_run
    from tuning.storage.recovery import bring_if_absent

    run_dir = Path(run)
    if is_url(run):
        storage, name = split_run(run)
        run_dir = RUNS / checked_name(name)
    bring_if_absent(run_dir, storage)
    found = load_run(run_dir)
    now = load_sweep(spec) if spec else None
    from tuning.plan import Launch
    from tuning.sweep import resume_sweep

    done = sum(t.has_ended for t in found.trials)
    target = asked_trials(found, trials=trials, spec=now) or found.target
    for line in remarks(found, trials=trials, spec=now):
        say(line)

    def go(watcher: "Watcher") -> "Run":
        launch = Launch(
            address=address,
            grace_s=grace,
            ledger=ledger,
            storage=storage,
            allows_insecure=allow_insecure_cluster,
        )
        return resume_sweep(
            run_dir, trials=trials, spec=now, takeover=takeover, launch=launch, watcher=watcher
        )

    _drive(go, found.spec, run_dir, target=target, done=done, as_json=as_json)


@app.command(
    epilog=examples("retry runs/demo --failed", "retry runs/demo --trial 3 --trial 7 --json")
)
def retry(
    run: RunPath,
    failed: Annotated[
        bool, typer.Option("--failed", help="All failed trials that were not repeated yet.")
    ] = False,
    trial: Annotated[
        list[int] | None, typer.Option(help="Only this failed trial; repeatable.", min=0)
    ] = None,
    address: Address = None,
    grace: Grace = GRACE_S,
    ledger: LedgerUrl = None,
    allow_insecure_cluster: InsecureFlag = False,
    as_json: BestAsJson = False,
) -> None:
    """Repeat failed trials as new ones with the same parameters, then go on with the sweep."""
    from tuning.extending import to_retry
    from tuning.run import load_run

    if not failed and not trial:
        raise UserError("retry: --failed or --trial N is needed, to say which trials are repeated")
    found = load_run(run)
    numbers = to_retry(found, trial or ())
    if not numbers:
        say(f"{run}: no trial failed that was not repeated; nothing to do")
        return
    from tuning.plan import Launch
    from tuning.sweep import resume_sweep

    say(f"{run}: repeats {', '.join(f'trial {n}' for n in numbers)} as new trials")
    done = sum(t.has_ended for t in found.trials)
    target = max(found.target, len(found.trials)) + len(numbers)

    def go(watcher: "Watcher") -> "Run":
        launch = Launch(
            address=address, grace_s=grace, ledger=ledger, allows_insecure=allow_insecure_cluster
        )
        return resume_sweep(run, retry=numbers, launch=launch, watcher=watcher)

    _drive(go, found.spec, run, target=target, done=done, as_json=as_json)


@app.command(
    epilog=examples("repeat runs/demo --top 3 --seeds 5", "repeat runs/demo --seeds 3 --json")
)
def repeat(
    run: RunPath,
    top: Annotated[int, typer.Option(help="How many of the best trials.", min=1)] = 3,
    seeds: Annotated[int, typer.Option(help="Seeds of each.", min=2)] = 5,
    name: Annotated[
        str | None, typer.Option(help="Run folder below runs/; NAME-repeat if absent.")
    ] = None,
    address: Address = None,
    grace: Grace = GRACE_S,
    allow_insecure_cluster: InsecureFlag = False,
    as_json: AsJson = False,
) -> None:
    """Run the best trials again over seeds: mean, spread and paired differences; goes on where it stopped."""
    from tuning.records import LEDGER_FILE
    from tuning.repetition import repeated_json, repetition
    from tuning.run import load_run

    found = load_run(run)
    spec = repetition(found, top=top, seeds=seeds)
    run_dir = RUNS / checked_name(name or spec.name)
    from tuning.plan import Launch
    from tuning.sweep import resume_sweep, run_sweep

    named = [] if name is None else ["--name", name]
    options = ["--top", str(top), "--seeds", str(seeds), *named]
    again = shlex.join(["unlearn-tune", "repeat", str(run), *options])
    launch = Launch(address=address, grace_s=grace, allows_insecure=allow_insecure_cluster)
    if (run_dir / LEDGER_FILE).exists():
        before = load_run(run_dir)
        done = sum(t.has_ended for t in before.trials)

        def go(watcher: "Watcher") -> "Run":
            return resume_sweep(run_dir, spec=spec, launch=launch, watcher=watcher)
    else:
        done = 0
        say(f"run folder: {run_dir}   go on after a stop with: {again}")

        def go(watcher: "Watcher") -> "Run":
            return run_sweep(spec, run_dir, launch=launch, watcher=watcher)

    ended = _driven(go, spec, run_dir, target=spec.budget.trials, done=done, again=again)
    _end(ended, as_json=repeated_json(ended) if as_json else None)


def _drive(
    go: "Callable[[Watcher], Run]",
    spec: SweepSpec,
    run_dir: Path,
    *,
    target: int,
    done: int,
    as_json: bool,
) -> None:
    """Run or resume with progress, and end with the result and its exit status."""
    from tuning.results import best_json

    again = f"unlearn-tune resume {run_dir}"
    run = _driven(go, spec, run_dir, target=target, done=done, again=again)
    _end(run, as_json=best_json(run) if as_json else None)


def _end(run: "Run", *, as_json: Mapping[str, Any] | None) -> None:
    """End with the result, as JSON where that is given, and its exit status."""
    from tuning.best_view import BestTable
    from tuning.repetition import repeated_text
    from tuning.views import ending_text

    if as_json is not None:
        tell(json.dumps(as_json, indent=1))
    else:
        table = repeated_text(run) if run.is_repetition else BestTable(run=run, top=5)
        terminal().print(Shown(table))
        say(ending_text(run))
    if run.state == "no_feasible":
        raise typer.Exit(NO_FEASIBLE)
    if run.state == "failed":
        raise typer.Exit(FAILED)


def _driven(
    go: "Callable[[Watcher], Run]",
    spec: SweepSpec,
    run_dir: Path,
    *,
    target: int,
    done: int,
    again: str,
) -> "Run":
    """Run or resume with progress; a signal ends the command with its status, and with the command that goes on."""
    from tuning.driver import Interrupted
    from tuning.progress import Progress

    try:
        with Progress(spec, target=target, done=done) as progress:
            return go(progress)
    except Interrupted as err:
        if run_dir.exists():
            say(f"interrupted; nothing finished is lost. Go on with: {again}")
        else:
            say("interrupted before anything was tried; no run was made")
        raise typer.Exit(128 + err.signal_number) from None
