"""Verbs on models without a sweep: prepare, train one configuration, evaluate."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from core.errors import UserError
from core.store.durable import commit_json, finite
from tuning.cli.application import NO_FEASIBLE, EndsAsJson, app, examples, overrides_of, say, tell
from tuning.files import read_yaml, set_dotted
from tuning.terminal import Shown, terminal


@app.command(
    epilog=examples(
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
    as_json: EndsAsJson = False,
) -> None:
    """Fine-tune a target model (forget and retain rows) and a retain-only model; cached by content."""
    from tuning.prepare import load_preparation, prepare_models

    config = load_preparation(spec, overrides=overrides_of(set_ or []))
    made = prepare_models(config, which=which, out=out, say=say)
    if as_json:
        tell(json.dumps(finite(made), indent=1))
        return
    for name, found in made.items():
        forget, retain = found["forget"], found["retain"]
        tell(
            f"{name}: forget accuracy {forget['accuracy']:.3f} ({forget['nll']:.3f} nats per token), retain "
            f"accuracy {retain['accuracy']:.3f} ({retain['nll']:.3f}); {found['folder']}"
        )


@app.command(
    epilog=examples("train best/trial.yaml --out again", "train trial.yaml --out one --resume")
)
def train(
    trial: Annotated[
        Path, typer.Argument(help="A trial file, as export writes it.", metavar="TRIAL.yaml")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist, but for --resume.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a value: key=value, dotted key; repeatable."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a trial that was interrupted in this folder, or begin it."
        ),
    ] = False,
    as_json: EndsAsJson = False,
) -> None:
    """Run one configuration without a sweep; stops and selects as it did in the sweep."""
    from core.config import parse_trial

    values = read_yaml(trial)
    for key, value in overrides_of(set_ or []).items():
        set_dotted(values, key, value, where=str(trial))
    config = parse_trial(values, where=str(trial))
    if out.exists() and not resume:
        raise UserError(
            f"--out: {out} exists already; give a new folder, or go on with what was interrupted there by --resume"
        )
    from tuning.train import finished_before, train_trial

    result = finished_before(config, out) if out.exists() else None
    if result is not None:
        say(f"{out}: the trial is finished already")
    result = result or train_trial(config, out, say=say)
    if as_json:
        tell(json.dumps(result, indent=1))
    elif result["feasible"]:
        tell(
            f"{config.selection.metric} = {result['value']:.4f} at step {result['step']}; adapter in {out}/adapter"
        )
    if not result["feasible"]:
        say(f"no feasible probe: {result['reason']}")
        raise typer.Exit(NO_FEASIBLE)


@app.command(
    epilog=examples(
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
    result = run_suites(request, tell=say)
    if out is not None:
        commit_json(out, result)
        say(f"wrote {out}")
    if earlier is not None:
        result = with_before(without_samples(earlier), result)
    if as_json:
        tell(json.dumps(without_samples(result), indent=1))
    else:
        terminal().print(Shown(evaluation_tables(result)))
