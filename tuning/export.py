"""Write a trial's adapter as a folder that others load: PEFT files, a model card, and the trial itself."""

import json
import shutil
from pathlib import Path

from core.config import METRICS
from core.errors import FileError, UserError
from core.store.durable import commit_text, commit_yaml
from core.store.texts import read_json
from tuning.data_words import count_lines, data_warnings
from tuning.files import read_yaml
from tuning.ranking import best
from tuning.records import TrialRecord, attempt_folder
from tuning.results import doubts
from tuning.run import Run
from tuning.wording import between, decimals

_CARD_METRICS = ("forget_nll", "forget_accuracy", "forget_closure")


def export_trial(run: Run, trial: TrialRecord, out: Path, *, base: str | None) -> None:
    """Export a trial.

    Args:
        run: Its run.
        trial: The trial; must have an adapter.
        out: Folder to make.
        base: Name or path of the original model to record instead of the one the run used.

    Raises:
        UserError: If the trial has no adapter, its files are gone, or the folder exists.
    """
    if trial.adapter is None:
        raise UserError(
            f"trial {trial.number} has no adapter: it never had a feasible probe ({trial.reason or trial.state}); "
            "choose another with --trial"
        )
    if out.exists():
        raise UserError(f"--out: {out} exists already; give a new folder")
    source = run.path / trial.adapter
    is_whole = (source / "config.json").is_file()  # full-parameter unlearning saves a model
    if not is_whole and not (source / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{source}: the adapter is not there; was the run copied without its trials?"
        )
    if is_whole:
        shutil.copytree(source, out)
        original = base or str(run.spec.model.get("source", "unknown"))
    else:
        original = _copy_adapter(source, out, base)
    attempt = run.path / attempt_folder(trial.number, trial.attempt)
    commit_yaml(
        out / "trial.yaml",
        read_yaml(attempt / "trial.yaml"),
        header=f"# Trial {trial.number} of {run.name}. Run it again: unlearn-tune train trial.yaml --out FOLDER\n",
    )
    card = model_card(run, trial, original, is_whole=is_whole)
    commit_text(out / "README.md", card)


def _copy_adapter(source: Path, out: Path, base: str | None) -> str:
    """Copy PEFT's two files; gives the name of the original model that they record."""
    config = read_json(source / "adapter_config.json")
    if not isinstance(config, dict) or "base_model_name_or_path" not in config:
        problem = "names no base model; restore the file from a copy"
        raise FileError(str(source / "adapter_config.json"), problem)
    out.mkdir(parents=True)
    shutil.copyfile(source / "adapter_model.safetensors", out / "adapter_model.safetensors")
    if base is not None:
        config["base_model_name_or_path"] = base
    text = json.dumps(config, indent=1) + "\n"
    commit_text(out / "adapter_config.json", text)
    return str(config["base_model_name_or_path"])


def model_card(run: Run, trial: TrialRecord, base: str, *, is_whole: bool = False) -> str:
    """The README: what the adapter or model is, what was measured, what it is not."""
    baseline = run.facts.baseline
    report = trial.report_metrics or {}
    rows = [
        f"| {METRICS[name].full_name} | {_cell(baseline.get(name))} | "
        f"{_cell(trial.metrics.get(name), trial.intervals.get(name), name)} | "
        f"{_cell(report.get(name), trial.report_intervals.get(name), name)} |"
        for name in (*_CARD_METRICS, *run.spec.trial_selection().limited_metrics)
    ]
    versions = ", ".join(f"{k} {v}" for k, v in run.facts.versions.items())
    parameters = "\n".join(f"- `{name}`: {value}" for name, value in trial.params.items())
    identity = run.facts.identity.get("model", "unknown")
    counts = run.facts.data_counts
    data = "\n".join(f"- {line}" for line in [*count_lines(counts), *data_warnings(counts)])
    what = (
        "A model whose weights were trained to forget a set of texts. "
        "`AutoModelForCausalLM.from_pretrained(folder)` loads it."
        if is_whole
        else "A LoRA adapter that makes the base model forget a set of texts. It is an ordinary LoRA on the\n"
        "original weights: `PeftModel.from_pretrained(base, folder)` loads it."
    )
    library, tag = ("transformers", "full-parameter") if is_whole else ("peft", "lora")
    return f"""---
base_model: {json.dumps(base)}
library_name: {library}
tags: [unlearning, {tag}]
---

# {"Unlearned model" if is_whole else "Unlearning adapter"}: {run.name}, trial {trial.number}

{what}

- Base model: `{base}` ({identity})
- Forget set: `{run.spec.data.get("forget", {}).get("source", "?")}`
- Step {trial.step}; stopped by {trial.stopped_by}: {trial.reason}
- Versions: {versions}

| metric | before | after (probe split) | after (reporting split) |
|---|---|---|---|
{chr(10).join(rows)}

The target of forgetting is cross-entropy {_cell(baseline.get("target_nll"))} and accuracy
{_cell(baseline.get("target_accuracy"))}: {_target(run)}.
{_standing(run, trial)}
## Hyperparameters

{parameters}

## Data

{data or "What was read and left out is not recorded."}

## Limits

These numbers say that the forget set is predicted like unseen text. They do not show that nothing of it
can be recovered: relearning, quantisation and extraction attacks were not part of this sweep.
"""


def _target(run: Run) -> str:
    if run.spec.model.get("retain_only"):
        return "the forget set's under a retain-only model, which never saw it"
    return "those of the approximate set, text of the same kind that the base model never saw"


def _cell(value: float | None, ends: tuple[float, float] | None = None, metric: str = "") -> str:
    text = decimals(value, missing="-")
    return text if ends is None else f"{text} ({between(ends, metric)})"


def _standing(run: Run, trial: TrialRecord) -> str:
    """How sure the numbers are, and what must be said of the trial beside its name."""
    lines = []
    if trial.intervals:
        lines.append(
            "In brackets: 95 % intervals by resampling rows, drops paired with the model before unlearning. "
            "The forget rows are\ntrained on, and the same on both splits."
        )
    if trial == best(run.trials):
        lines += [f"Best of its sweep; {doubt}." for doubt in doubts(run)]
    elif trial.reported_feasible is False:
        lines.append("This trial breaks a constraint on the reporting split.")
    return "".join(f"\n{line}\n" for line in lines)
