"""One configuration without a sweep: the same worker, guard and selection."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.config import TrialConfig
from core.data.counts import Counts
from core.errors import UserError
from core.launch import launch_trial
from core.measuring.selection import Probe
from core.store.durable import commit_json, commit_yaml, finite
from tuning.data_words import count_lines, data_warnings
from tuning.objective import conclude


def train_trial(config: TrialConfig, out: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a trial into ``out``: ``trial.yaml``, ``history.jsonl``, ``adapter/``, ``result.json``.

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

    commit_yaml(out / "trial.yaml", config.model_dump(mode="json"))
    finished = launch_trial(
        config, out, tell=tell, tell_data=tell_data, warn=lambda text: say(f"warning: {text}")
    )
    outcome = conclude(finished.probes, config.selection, finished.decision.verdict)
    result = finite({k: v for k, v in asdict(outcome).items() if k != "violations"})
    commit_json(out / "result.json", result)
    return dict(result)
