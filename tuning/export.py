"""Write a trial's adapter as a folder that others load: PEFT files, a model card, and the trial itself."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.errors import ConfigError, FileError, UserError
from core.model.source import public_name
from core.store.confinement import inside, refuse_links_out
from core.store.durable import commit_text, commit_yaml
from core.training.lora_format import CONFIG_FILE, WEIGHTS_FILE, SavedLora, refuse_torn
from tuning.attributes import is_count
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
    out: Path | str,
    *,
    base: str | None = None,
    reduced: Reduced | None = None,
) -> None:
    """Export a trial.

    What is written names no place of this machine but folders and files that the user gave, as seen from the
    current folder.

    Args:
        run: Its run.
        trial: The trial; must have an adapter.
        out: Folder to make.
        base: Name or path of the original model to record; the one the run used if ``None``.
        reduced: Its adapter at a lower rank, to be written instead.

    Raises:
        UserError: If the trial has no adapter, its files are gone, or the folder exists.
    """
    out = Path(out)
    source = exportable(run, trial)
    refuse_folder(out)
    original = base or _from_here(public_name(run.spec.trial_model()))
    written = source if reduced is None else reduced.folder
    is_model = (source / _MODEL_FILE).is_file()  # full-parameter unlearning saves a model
    saved = None if is_model else replace(SavedLora.read(written), base=original)
    for weights in written.glob("*.safetensors"):
        refuse_torn(weights)
    values, trained_rank = _trial_values(trial_file(run, trial))
    if saved is None:
        shutil.copytree(source, out)
    else:
        out.mkdir(parents=True)
        shutil.copyfile(written / WEIGHTS_FILE, out / WEIGHTS_FILE)
        commit_text(out / CONFIG_FILE, json.dumps(saved.as_json(), indent=1) + "\n")
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
        trial_rank=trained_rank,
        reduced=reduced,
    )
    commit_text(out / "README.md", card)


def _trial_values(path: Path) -> tuple[dict[str, Any], int]:
    """A trial's own file, and the rank that it trained.

    Raises:
        ConfigError: If it does not say the rank.
    """
    values = read_yaml(path)
    adapter = values.get("adapter")
    rank = adapter.get("rank") if isinstance(adapter, Mapping) else None
    if not is_count(rank):
        problem = f"adapter.rank: a whole number is expected, got {rank!r}; restore it from a copy"
        raise ConfigError(str(path), [problem])
    return values, rank


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
