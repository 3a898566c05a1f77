"""Write a trial's adapter as a folder that others load: PEFT files, a model card, and the trial itself."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from core.errors import FileError, UserError
from core.model.source import public_name
from core.store.confinement import inside, refuse_links_out
from core.store.durable import commit_text, commit_yaml
from core.training.lora_format import CONFIG_FILE, WEIGHTS_FILE, SavedLora
from tuning.card import Reduced, model_card
from tuning.files import paths_changed, read_yaml
from tuning.records import TrialRecord, attempt_folder, is_adapter_damaged
from tuning.run import Run

_MODEL_FILE = "config.json"


def exportable(run: Run, trial: TrialRecord) -> Path:
    """Folder of what a trial saved.

    Raises:
        UserError: If it saved nothing, or its files are gone, damaged, or not the run folder's own.
    """
    if trial.adapter is None:
        raise UserError(
            f"trial {trial.number} has no adapter: it never had a feasible probe ({trial.reason or trial.state}); "
            "choose another with --trial"
        )
    source = inside(run.path, trial.adapter)
    if source.is_dir():
        refuse_links_out(source)
    if not (source / _MODEL_FILE).is_file() and not (source / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{source}: the adapter is not there; was the run copied without its trials?"
        )
    if is_adapter_damaged(run.path, trial.number, trial.attempt):
        problem = "is not what the trial saved (its checksum differs); restore it from a copy, or take another trial"
        raise FileError(str(source / WEIGHTS_FILE), problem)
    return source


def trial_file(run: Run, trial: TrialRecord) -> Path:
    """The trial's own configuration in its run folder."""
    return inside(run.path, f"{attempt_folder(trial.number, trial.attempt)}/trial.yaml")


def export_trial(
    run: Run,
    trial: TrialRecord,
    out: Path,
    *,
    base: str | None,
    reduced: Reduced | None = None,
) -> None:
    """Export a trial.

    What is written names no place of this machine but folders and files that the user gave, as seen from the
    current folder.

    Args:
        run: Its run.
        trial: The trial; must have an adapter.
        out: Folder to make.
        base: Name or path of the original model to record instead of the one the run used.
        reduced: Its adapter at a lower rank, to be written instead.

    Raises:
        UserError: If the trial has no adapter, its files are gone, or the folder exists.
    """
    source = exportable(run, trial)
    refuse_folder(out)
    original = base or _from_here(public_name(run.spec.trial_model()))
    saved: SavedLora | None = None
    if (source / _MODEL_FILE).is_file():  # full-parameter unlearning saves a model
        shutil.copytree(source, out)
    else:
        written = source if reduced is None else reduced.folder
        saved = replace(SavedLora.read(written), base=original)
        out.mkdir(parents=True)
        shutil.copyfile(written / WEIGHTS_FILE, out / WEIGHTS_FILE)
        commit_text(out / CONFIG_FILE, json.dumps(saved.as_json(), indent=1) + "\n")
    values = read_yaml(trial_file(run, trial))
    commit_yaml(
        out / "trial.yaml",
        paths_changed(values, _from_here),
        header=f"# Trial {trial.number} of {run.name}. Run it again: unlearn-tune train trial.yaml --out FOLDER\n",
    )
    card = model_card(
        run,
        trial,
        original,
        forget=_from_here(str(run.spec.data.get("forget", {}).get("source", "?"))),
        saved=saved,
        trial_rank=values["adapter"]["rank"],
        reduced=reduced,
    )
    commit_text(out / "README.md", card)


def refuse_folder(out: Path) -> None:
    """Refuse to write into a folder that exists.

    Raises:
        UserError: If it does.
    """
    if out.exists():
        raise UserError(f"--out: {out} exists already; give a new folder")


def _from_here(source: str) -> str:
    """A path as seen from the current folder, where they have a folder in common; other sources as they are."""
    path, here = Path(source), Path.cwd()
    if not path.is_absolute() or path.parts[1:2] != here.parts[1:2]:
        return source
    return os.path.relpath(path, here)
