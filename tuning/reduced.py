"""A trial's adapter at a lower rank, and what that costs, measured on the reporting split."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.config import TrialConfig, parse_trial
from core.errors import UserError
from core.training.lora_format import SavedLora
from tuning.card import Reduced
from tuning.export import exportable, trial_file
from tuning.files import read_yaml
from tuning.records import TrialRecord
from tuning.run import Run


@contextmanager
def reduced_adapter(run: Run, trial: TrialRecord, *, rank: int) -> Iterator[Reduced]:
    """The best approximation of a trial's adapter at a rank, in a folder that ends with the context.

    Model and data of the run are needed: both adapters are measured.

    Raises:
        UserError: If the trial has no adapter, the rank is no lower than the adapter's, or model or data are not
            here.
    """
    source = exportable(run, trial)
    if (source / "config.json").is_file():
        raise UserError(
            f"--rank: trial {trial.number} trained all weights and has no adapter; leave --rank out"
        )
    saved = SavedLora.read(source)
    if rank >= saved.rank:
        raise UserError(
            f"--rank: must be below the adapter's rank of {saved.rank}, got {rank}; leave --rank out to export it "
            "as it is"
        )
    from core.training.adapter import read_adapter, save_adapter
    from core.training.low_rank import best_approximation

    found = best_approximation(read_adapter(source), rank=rank)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_adapter(
            folder,
            found.tensors,
            scaling=saved.scaling,
            base=saved.base,
            transposed=saved.is_transposed,
        )
        path = trial_file(run, trial)
        config = parse_trial(read_yaml(path), where=str(path))
        before, after = _measured(config, source, folder)
        yield Reduced(
            folder=folder,
            rank=rank,
            whole_rank=saved.rank,
            kept=found.kept,
            before=before,
            after=after,
            broken=tuple(
                rule
                for rule in config.selection.constraints
                if not rule.excess(after[rule.metric]) <= 0.0  # NaN is broken, too
            ),
        )


def _measured(config: TrialConfig, *adapters: Path) -> list[dict[str, float]]:
    """Metrics of adapters on the reporting split, on whatever device is here."""
    from core.training.ranks import Group
    from core.training.warm import Warm
    from core.worker import report_measurement

    engine = config.engine.model_copy(update={"device": "auto"})
    here, warm = config.model_copy(update={"engine": engine}), Warm()
    group = Group(rank=0, size=1)
    return [
        dict(report_measurement(here, adapter, warm=warm, group=group).metrics)
        for adapter in adapters
    ]
