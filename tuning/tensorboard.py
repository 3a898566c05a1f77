"""Door to tensorboardX: the history of each trial as event files, for TensorBoard."""

import math
from pathlib import Path

from tensorboardX import SummaryWriter

from tuning.damage import whole_history
from tuning.plots.reading import number_or_nan
from tuning.report.commands import REPORT_FOLDER
from tuning.run import Run
from tuning.wording import as_code

FOLDER = "tensorboard"


def write_events(run: Run) -> Path:
    """Write ``report/tensorboard/NUMBER/`` for each trial that was probed: its metrics over steps, and its parameters.

    What is no number is left out. Files of an earlier call are replaced.

    Returns:
        The folder, for ``tensorboard --logdir``.
    """
    folder = run.path / REPORT_FOLDER / FOLDER
    for trial in run.trials:
        history = whole_history(run, trial.number) if trial.attempt else []
        if not history:
            continue
        place = folder / f"{trial.number:04d}"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(place), write_to_disk=True) as writer:
            parameters = "\n".join(
                f"    {as_code(name)}: {as_code(value)}" for name, value in trial.params.items()
            )
            writer.add_text("parameters", parameters)
            for line in history:
                for metric, value in line["metrics"].items():
                    number = number_or_nan(value)
                    if math.isfinite(number):
                        writer.add_scalar(metric, number, global_step=line["step"])
    return folder
