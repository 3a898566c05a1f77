"""One configuration without a sweep: the same worker, guard and selection."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.config import TrialConfig, parse_trial
from core.data.counts import Counts
from core.errors import UserError
from core.launch import launch_trial
from core.measuring.selection import Probe
from core.store.checkpoints import remove_all
from core.store.durable import commit_json, commit_yaml, finite
from core.store.texts import read_json
from core.training.resuming import Interruption
from tuning.data_words import count_lines, data_warnings
from tuning.files import read_yaml
from tuning.objective import conclude

TRIAL_FILE, RESULT_FILE = "trial.yaml", "result.json"


def train_trial(config: TrialConfig, out: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a trial into ``out``: ``trial.yaml``, ``history.jsonl``, ``adapter/``, ``result.json``.

    It goes on from the newest good checkpoint that ``out`` has, if any.

    Returns:
        What ``result.json`` holds.

    Raises:
        UserError: If the configuration contradicts itself, or model or data are not as it says.
    """
    if config.selection.horizon_problem:
        raise UserError(f"selection.past_target: {config.selection.horizon_problem}")
    shown = (config.selection.metric, *config.selection.limited_metrics)

    def tell(probe: Probe) -> None:
        values = "  ".join(f"{name} {probe.metrics[name]:.4f}" for name in shown)
        say(f"step {probe.step}/{config.selection.max_steps}  {values}  {probe.seconds:.0f} s")

    def tell_data(counts: Mapping[str, Counts]) -> None:
        for line in [*count_lines(counts), *(f"warning: {w}" for w in data_warnings(counts))]:
            say(line)

    commit_yaml(out / TRIAL_FILE, config.model_dump(mode="json"))
    finished = launch_trial(
        config,
        out,
        tell=tell,
        tell_data=tell_data,
        warn=lambda text: say(f"warning: {text}"),
        interruption=Interruption(earlier=[out]),
    )
    outcome = conclude(finished.probes, config.selection, finished.decision.verdict)
    result = finite({k: v for k, v in asdict(outcome).items() if k != "violations"})
    commit_json(out / RESULT_FILE, result)
    remove_all([out])
    return dict(result)


def finished_before(config: TrialConfig, out: Path) -> dict[str, Any] | None:
    """The result of a trial that is to be gone on with, if it had ended.

    Raises:
        UserError: If ``out`` holds something else than this trial.
    """
    path = out / TRIAL_FILE
    if not path.is_file():
        raise UserError(
            f"--resume: {out} holds no {TRIAL_FILE}, so no trial was begun there; give another folder with --out"
        )
    before = parse_trial(read_yaml(path), where=str(path))
    if _but_for_checkpoints(before) != _but_for_checkpoints(config):
        raise UserError(
            f"--resume: {path} is another configuration than the one to go on with; give that file as TRIAL.yaml "
            "without --set, or a new folder with --out"
        )
    return dict(read_json(out / RESULT_FILE)) if (out / RESULT_FILE).is_file() else None


def _but_for_checkpoints(config: TrialConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json")
    del plain["selection"]["checkpoint_every"]
    return plain
