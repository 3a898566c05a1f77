"""The command line. Results go to stdout, everything else to stderr.

Nothing heavy is imported at the top: ``--help``, ``status``, ``best`` and ``validate`` answer at once.
"""

import errno
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from core.errors import ConfigError, UserError
from core.store.durable import commit_json, commit_yaml, finite
from core.store.refusal import refusal
from tuning import strict_yaml
from tuning.config import RUN_NAME, SweepSpec
from tuning.files import load_sweep, read_yaml, set_dotted
from tuning.surroundings import SPIN, begin_in_utf8, without_carriage_returns
from tuning.terminal import Shown, shown, terminal

if TYPE_CHECKING:
    from tuning.events import Watcher
    from tuning.run import Run

app = typer.Typer(
    name="unlearn-tune",
    help="Tune hyperparameters of LLM unlearning: launch sweeps, inspect the best, reproduce.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNS = Path("runs")
GUIDELINES = Path("docs/guidelines")
"""Where `reproduce` keeps what it measured, unless told otherwise."""
_MOST_INDENTED = 100
"""More trials are printed as JSON without line breaks, which takes a fraction of the time."""
_WIDEST = 2000
"""Signs of a line of a table that may be wider than the terminal."""
REFUSED, NO_FEASIBLE, FAILED = 2, 3, 4

RunPath = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo.", metavar="RUN")]


def main() -> None:
    """Entry point: a user's mistake ends with status 2 and without a traceback."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read once, when torch is loaded
    begin_in_utf8()
    without_carriage_returns()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a sign that the terminal has not is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as err:
        _say(f"error: {err}")
        sys.exit(REFUSED)
    except OSError as err:
        if err.errno == errno.ENOSPC:
            _say(
                f"error: the disk is full ({err.filename}); nothing finished is lost. Free some space, then go "
                "on with: unlearn-tune resume RUN"
            )
            sys.exit(FAILED)
        said = refusal(err)
        if said is None:
            raise
        _say(f"error: {said}")
        sys.exit(REFUSED)


def _group(name: str, *, help_: str) -> typer.Typer:
    """Verbs below a verb."""
    made = typer.Typer(help=help_, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(made, name=name)
    return made


def _examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  unlearn-tune {line}" for line in lines)


@app.command(
    epilog=_examples(
        "sweep search_spaces/demo.yaml --name demo",
        "sweep search_spaces/demo.yaml --trials 4 --dry-run",
    )
)
def sweep(
    spec: Annotated[Path, typer.Argument(help="Sweep file.", metavar="SPEC")],
    name: Annotated[
        str | None, typer.Option(help="Run folder below runs/; the sweep's name if absent.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials instead of budget.trials.", min=1)
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="End with `best` as JSON.")] = False,
) -> None:
    """Start a sweep in runs/NAME."""
    from tuning.validate import refuse_missing

    overrides = _overrides(set_ or [])
    if trials is not None:
        overrides["budget.trials"] = trials
    loaded = load_sweep(spec, overrides=overrides)
    run_dir = RUNS / _run_name(name or loaded.name)
    if address is None:  # a cluster may have what this machine has not
        refuse_missing(loaded, where=str(spec))
    if dry_run:
        from tuning.dry_run import show_dry_run

        show_dry_run(loaded, run_dir, as_json=as_json)
        return
    from tuning.sweep import Launch, refuse_existing, run_sweep

    refuse_existing(loaded, run_dir)
    _say(f"run folder: {run_dir}   go on after a stop with: unlearn-tune resume {run_dir}")

    def go(watcher: "Watcher") -> "Run":
        launch = Launch(address=address)
        return run_sweep(loaded, run_dir, file=spec, launch=launch, watcher=watcher)

    _drive(go, loaded, run_dir, target=loaded.budget.trials, done=0, as_json=as_json)


@app.command(
    epilog=_examples(
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
) -> None:
    """Write a commented sweep file for your own model and data; asks for what is not given."""
    from tuning.initial import DEFAULT_GENERAL, Answers, write_sweep

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
    )
    write_sweep(answers, out)
    _say(f"wrote {out}; look at it, then: unlearn-tune sweep {out} --dry-run")
    _print(str(out))


@app.command(epilog=_examples("resume runs/demo", "resume runs/demo --trials 24"))
def resume(
    run: RunPath,
    trials: Annotated[
        int | None, typer.Option(help="New number of trials of the whole sweep.", min=1)
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(
            help="Sweep file to compare with the run's; refused if it changed, but for more budget.trials."
        ),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address of an existing Ray cluster.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with `best` as JSON.")] = False,
) -> None:
    """Go on exactly where a sweep stopped; with more trials, extend it."""
    from tuning.extending import asked_trials, remarks
    from tuning.run import load_run

    found = load_run(run)
    now = load_sweep(spec) if spec else None
    from tuning.sweep import Launch, resume_sweep

    done = sum(t.state in ("COMPLETE", "PRUNED", "FAIL") for t in found.trials)
    target = asked_trials(found, trials=trials, spec=now) or found.target
    for line in remarks(found, trials=trials, spec=now):
        _say(line)

    def go(watcher: "Watcher") -> "Run":
        launch = Launch(address=address)
        return resume_sweep(run, trials=trials, spec=now, launch=launch, watcher=watcher)

    _drive(go, found.spec, run, target=target, done=done, as_json=as_json)


@app.command(epilog=_examples("status runs/demo", "status runs/demo --json"))
def status(
    run: RunPath,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
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
        _print(json.dumps(status_json(found), indent=1) if as_json else status_text(found))
        if not watch or found.state != "running":
            return
        time.sleep(2.0)


@app.command(epilog=_examples("best runs/demo", "best runs/demo --top 3 --format json"))
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
        _print(json.dumps(shown, indent=None if is_long else 1))
    elif format_ == "yaml":
        _print(
            yaml.safe_dump(best_json(found, top=top), sort_keys=False, allow_unicode=True).rstrip()
        )
    elif format_ == "csv":
        order = [t["number"] for t in best_json(found, top=top)["trials"]]
        _print(found.to_dataframe().set_index("number").loc[order].to_csv().rstrip())
    else:
        from tuning.best_view import BestTable

        width = _WIDEST if wide else None
        table = BestTable(run=found, top=top or 10, is_wide=wide)
        terminal().print(Shown(table), width=width, soft_wrap=wide)


@app.command(
    epilog=_examples("advise runs/demo", "advise runs/demo runs/demo-next --out next.yaml --json")
)
def advise(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs on one model and data.", metavar="RUN...")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the next sweep here, ready to launch.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
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
        _print(json.dumps(finite(found.plain()), indent=1))
    else:
        terminal().print(Shown(advice_text(found)))
    if out is not None:
        commit_yaml(
            out, found.next_sweep, header=f"# The next sweep after {', '.join(found.runs)}.\n"
        )
        _say(f"wrote {out}; launch it with: unlearn-tune sweep {out}")


@app.command(
    epilog=_examples("repeat runs/demo --top 3 --seeds 5", "repeat runs/demo --seeds 3 --json")
)
def repeat(
    run: RunPath,
    top: Annotated[int, typer.Option(help="How many of the best trials.", min=1)] = 3,
    seeds: Annotated[int, typer.Option(help="Seeds of each.", min=2)] = 5,
    name: Annotated[
        str | None, typer.Option(help="Run folder below runs/; NAME-repeat if absent.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address of an existing Ray cluster.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Run the best trials again over seeds: mean, spread and paired differences; goes on where it stopped."""
    from tuning.records import LEDGER_FILE
    from tuning.repetition import repeated_json, repeated_text, repetition
    from tuning.run import load_run

    found = load_run(run)
    spec = repetition(found, top=top, seeds=seeds)
    run_dir = RUNS / _run_name(name or spec.name)
    from tuning.sweep import Launch, resume_sweep, run_sweep

    launch = Launch(address=address)
    if (run_dir / LEDGER_FILE).exists():
        before = load_run(run_dir)
        done = sum(t.state in ("COMPLETE", "PRUNED", "FAIL") for t in before.trials)

        def go(watcher: "Watcher") -> "Run":
            return resume_sweep(run_dir, spec=spec, launch=launch, watcher=watcher)
    else:
        done = 0
        _say(f"run folder: {run_dir}   go on after a stop with the same command")

        def go(watcher: "Watcher") -> "Run":
            return run_sweep(spec, run_dir, launch=launch, watcher=watcher)

    ended = _driven(go, spec, run_dir, target=spec.budget.trials, done=done)
    if as_json:
        _print(json.dumps(repeated_json(ended), indent=1))
    else:
        terminal().print(Shown(repeated_text(ended)))
    _exit_by(ended)


@app.command(
    epilog=_examples("compare runs/demo runs/demo-next", "compare runs/a runs/b runs/c --json")
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN RUN...")],
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show runs side by side: what each found, what cannot be told apart, and what differs."""
    from tuning.comparison import compared, comparison_text
    from tuning.run import load_run

    found = [load_run(run) for run in runs]
    if as_json:
        _print(json.dumps(compared(found), indent=1))
    else:
        terminal().print(Shown(comparison_text(found)))


@app.command(epilog=_examples("show runs/demo 3", "show runs/demo best --json"))
def show(
    run: RunPath,
    trial: Annotated[str, typer.Argument(help="Number of a trial, or best.", metavar="TRIAL")],
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show a trial: parameters, curves, why it ended, how to run it again."""
    from tuning.ranking import trial_rows
    from tuning.run import load_run
    from tuning.views import pick_trial, trial_text

    found = load_run(run)
    record = pick_trial(found, trial)
    if as_json:
        (shown,) = trial_rows([record], among=found.trials, probe_rows=found.probe_rows)
        shown |= {"proposed_by": record.proposed_by, "history": found.history(record.number)}
        _print(json.dumps(finite(shown), indent=1))
    else:
        terminal().print(Shown(trial_text(found, record)))


@app.command(
    epilog=_examples(
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
            _say(line)
    _say(f"wrote trial {record.number} to {out}: adapter, model card, trial.yaml")
    _print(str(out))


@app.command(
    epilog=_examples("train best/trial.yaml --out again", "train trial.yaml --out one --json")
)
def train(
    trial: Annotated[
        Path, typer.Argument(help="A trial file, as export writes it.", metavar="TRIAL.yaml")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a value: key=value, dotted key; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with the result as JSON.")] = False,
) -> None:
    """Run one configuration without a sweep; stops and selects as it did in the sweep."""
    from core.config import parse_trial

    values = read_yaml(trial)
    for key, value in _overrides(set_ or []).items():
        set_dotted(values, key, value, where=str(trial))
    config = parse_trial(values, where=str(trial))
    if out.exists():
        raise UserError(f"--out: {out} exists already; give a new folder")
    from tuning.train import train_trial

    result = train_trial(config, out, say=_say)
    if as_json:
        _print(json.dumps(result, indent=1))
    elif result["feasible"]:
        _print(
            f"{config.selection.metric} = {result['value']:.4f} at step {result['step']}; adapter in {out}/adapter"
        )
    if not result["feasible"]:
        _say(f"no feasible probe: {result['reason']}")
        raise typer.Exit(NO_FEASIBLE)


@app.command(
    epilog=_examples(
        "prepare examples/prepare_authors.yaml --out prepared",
        "prepare examples/prepare_authors.yaml --set seed=1 --json",
    )
)
def prepare(
    spec: Annotated[Path, typer.Argument(help="Preparation file.", metavar="SPEC")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that gets links to the models: target and retain_only."),
    ] = None,
    which: Annotated[
        Literal["both", "target", "retain_only"], typer.Option(help="Which model is made.")
    ] = "both",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value: key=value, dotted key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with the result as JSON.")] = False,
) -> None:
    """Fine-tune a target model (forget and retain rows) and a retain-only model; cached by content."""
    from tuning.prepare import load_preparation, prepare_models

    config = load_preparation(spec, overrides=_overrides(set_ or []))
    made = prepare_models(config, which=which, out=out, say=_say)
    if as_json:
        _print(json.dumps(finite(made), indent=1))
        return
    for name, found in made.items():
        forget, retain = found["forget"], found["retain"]
        _print(
            f"{name}: forget accuracy {forget['accuracy']:.3f} ({forget['nll']:.3f} nats per token), retain "
            f"accuracy {retain['accuracy']:.3f} ({retain['nll']:.3f}); {found['folder']}"
        )


@app.command(
    epilog=_examples(
        "evaluate package:smollm2 --suite memorization,mia --limit 8",
        "evaluate target --suite tofu --retain-only retain_only",
        "evaluate hub:ORG/NAME --suite probes --data roles.yaml --json",
    )
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="package:NAME, hub:ORG/NAME or a model folder.", metavar="MODEL"),
    ],
    suite: Annotated[
        str,
        typer.Option(
            help="Suites, by comma: probes, memorization, mia, tofu, utility, muse, wmdp, mmlu, fluency; "
            "audits: relearning, quantisation, paraphrase.",
            metavar="S[,S...]",
        ),
    ],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a PEFT adapter on MODEL.", metavar="DIR")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Sources by role, a sweep or trial file, or a run folder; shipped sets if absent."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer of models without one; a folder or hub:ORG/NAME."),
    ] = None,
    retain_only: Annotated[
        str | None, typer.Option(help="A model that never saw the forget set.", metavar="MODEL")
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            help="The model before unlearning; MODEL itself if --adapter is given.", metavar="MODEL"
        ),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            help="What evaluate --out wrote of the model before: shown beside, with differences."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write, with the numbers of each row.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON without the numbers of each row.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Use the first rows of each role only.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of one forward pass.", min=1)] = 16,
    dtype: Annotated[Literal["auto", "bf16", "fp32"], typer.Option(help="Precision.")] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Device.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; torch's choice if absent.", min=1, max=1024)
    ] = None,
    fluency_model: Annotated[
        str | None, typer.Option(help="Text classifier that judges answers.", metavar="MODEL")
    ] = None,
    relearn_steps: Annotated[
        int, typer.Option(help="Audit relearning: optimiser steps.", min=1)
    ] = 10,
    relearn_samples: Annotated[
        int, typer.Option(help="Audit relearning: forget rows trained on.", min=1)
    ] = 8,
    relearn_rate: Annotated[
        float, typer.Option(help="Audit relearning: learning rate.", min=0.0, max=1.0)
    ] = 2e-5,
) -> None:
    """Run full metric suites and audits on a model, with or without an adapter."""
    from tuning.evaluate import (
        evaluation_tables,
        read_data,
        read_result,
        refuse_output,
        with_before,
        without_samples,
    )

    if out is not None:
        refuse_output(out)
    earlier = None if before is None else read_result(before)
    rows = None if data is None else read_data(data)
    from core.config import EngineConfig
    from core.evaluation import EvaluationRequest, compute_threads
    from core.evaluation import evaluate as run_suites
    from core.suites import AuditOptions

    compute_threads(threads)
    request = EvaluationRequest(
        model=model,
        suites=tuple(name.strip() for name in suite.split(",") if name.strip()),
        adapter=adapter,
        data=rows,
        tokenizer=tokenizer,
        retain_only=retain_only,
        initial=initial,
        limit=limit,
        batch_size=batch_size,
        engine=EngineConfig(dtype=dtype, device=device),
        options=AuditOptions(
            relearn_steps=relearn_steps,
            relearn_samples=relearn_samples,
            relearn_rate=relearn_rate,
            fluency_model=fluency_model,
        ),
    )
    result = run_suites(request, tell=_say)
    if out is not None:
        commit_json(out, result)
        _say(f"wrote {out}")
    if earlier is not None:
        result = with_before(without_samples(earlier), result)
    if as_json:
        _print(json.dumps(without_samples(result), indent=1))
    else:
        terminal().print(Shown(evaluation_tables(result)))


@app.command(epilog=_examples("validate search_spaces/demo.yaml", "validate cluster.yaml"))
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

    _print(validate_file(file))


@app.command(epilog=_examples("doctor", "doctor --json"))
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Check versions, devices, disk, cache and model presence, with a fix for each problem."""
    from tuning.doctor import examine

    checks = examine()
    if as_json:
        _print(json.dumps([vars(c) for c in checks], indent=1))
    else:
        for check in checks:
            _print(
                f"{check.status:5} {check.name}: {check.found}"
                + (f"; {check.fix}" if check.fix else "")
            )
    if any(c.status == "error" for c in checks):
        raise typer.Exit(REFUSED)


cache = _group("cache", help_="Show and clear the cache of shared work.")


@cache.command("list", epilog=_examples("cache list", "cache list --json"))
def cache_list(
    as_json: Annotated[bool, typer.Option("--json", help="Every entry, for scripts.")] = False,
) -> None:
    """Show what lies in the cache: by kind, with its size, when it was used, and what it was made from."""
    from core.store.upkeep import entries
    from tuning.cached import cache_json, cache_text

    found = entries()
    _print(json.dumps(cache_json(found, RUNS), indent=1) if as_json else cache_text(found, RUNS))


@cache.command(
    "clear",
    epilog=_examples(
        "cache clear --kind factors --kind importance", "cache clear --unused-for 30d"
    ),
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
        _print(json.dumps(cleared_json(removed, in_use), indent=1))
    else:
        _print(cleared_text(removed, in_use))


@app.command(epilog=_examples("reproduce", "reproduce ihl-is-stable --preset quick"))
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
    address: Annotated[str | None, typer.Option(help="Address of an existing Ray cluster.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list, for scripts.")] = False,
) -> None:
    """List the tuning guidelines with their verdicts, or test one: run or reuse its sweeps, and write its page."""
    from tuning.guidelines.catalogue import pick
    from tuning.guidelines.page import list_text, measured_text, write_pages
    from tuning.guidelines.record import commit_record, judged, listing, record_path

    if guideline is not None:
        chosen = pick(guideline)
        chosen.use(preset)
        overrides = _overrides(set_ or [])
        from tuning.guidelines.measuring import measure
        from tuning.sweep import Interrupted, Launch

        launch = Launch(address=address)
        try:
            record = measure(
                chosen, preset, runs=RUNS, launch=launch, overrides=overrides, say=_say
            )
        except Interrupted as err:
            _say("interrupted; nothing finished is lost. The same command goes on where it stopped")
            raise typer.Exit(128 + err.signal_number) from None
        commit_record(record_path(out, chosen), record)
        written = write_pages(out, judged(out))
        _say(f"wrote {written[-1]} and the pages of {len(written) - 1} measured guidelines")
    found = judged(out)
    if as_json:
        _print(json.dumps(listing(found), indent=1))
    elif guideline is None:
        _print(list_text(found))
    else:
        _print(measured_text(next(one for one in found if one.guideline is chosen)))


@app.command(epilog=_examples("report runs/demo", "report runs/demo --live"))
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
            _print(address)
            _say("the page looks for news itself; end with Ctrl-C")
            try:
                Event().wait()
            except KeyboardInterrupt:
                return
    from tuning.report import write_report
    from tuning.run import load_run

    found = load_run(run)
    if tensorboard:
        from tuning.tensorboard import write_events

        _say(f"look at the trials with: tensorboard --logdir {write_events(found)}")
    _print(str(write_report(found)))


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
    from tuning.best_view import BestTable
    from tuning.results import best_json
    from tuning.views import ending_text

    run = _driven(go, spec, run_dir, target=target, done=done)
    if as_json:
        _print(json.dumps(best_json(run), indent=1))
    else:
        terminal().print(Shown(BestTable(run=run, top=5)))
        _say(ending_text(run))
    _exit_by(run)


def _exit_by(run: "Run") -> None:
    if run.state == "no_feasible":
        raise typer.Exit(NO_FEASIBLE)
    if run.state == "failed":
        raise typer.Exit(FAILED)


def _driven(
    go: "Callable[[Watcher], Run]", spec: SweepSpec, run_dir: Path, *, target: int, done: int
) -> "Run":
    """Run or resume with progress; a signal ends the command with its status."""
    from tuning.progress import Progress
    from tuning.sweep import Interrupted

    try:
        with Progress(spec, target=target, done=done) as progress:
            return go(progress)
    except Interrupted as err:
        if run_dir.exists():
            _say(
                f"interrupted; nothing finished is lost. Go on with: unlearn-tune resume {run_dir}"
            )
        else:
            _say("interrupted before anything was tried; no run was made")
        raise typer.Exit(128 + err.signal_number) from None


def _run_name(name: str) -> str:
    import re

    if not re.fullmatch(RUN_NAME, name):
        raise UserError(
            f"--name: {name!r} must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return name


def _overrides(pairs: list[str]) -> dict[str, Any]:
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


def _print(text: str) -> None:
    print(shown(text))


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr)


if __name__ == "__main__":
    main()
