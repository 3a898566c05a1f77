"""What a driver does about checkpoints: it says where a trial's earlier attempts are, and removes what is told."""

from collections.abc import Collection
from pathlib import Path

from core.store import checkpoints
from tuning.records import attempt_folder

TRIALS = "trials"
"""Folder of a run that holds a folder for each trial, named after its number."""


def earlier_attempts(run_dir: Path, number: int, attempt: int) -> tuple[Path, ...]:
    """Folders of a trial's attempts before one, in their order."""
    return tuple(run_dir / attempt_folder(number, before) for before in range(1, attempt))


def remove_checkpoints(run_dir: Path, number: int) -> None:
    """Remove the checkpoints of a trial that is told: nobody goes on with it."""
    trial = (run_dir / attempt_folder(number, 1)).parent
    checkpoints.remove_all(sorted(trial.glob("attempt-*")))


def remove_left_checkpoints(run_dir: Path, *, running: Collection[int]) -> None:
    """Remove those of all trials but the ones that are running: a driver that died may have left some."""
    for folder in sorted((run_dir / TRIALS).glob(f"*/attempt-*/{checkpoints.CHECKPOINTS}")):
        name = folder.parents[1].name
        if name.isdecimal() and int(name) not in running:
            checkpoints.remove_all([folder.parent])
