"""What all trials of a sweep share is done once, before the first, on a rank of its own."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from core.config import TrialConfig
from core.measuring.scale import RetainScale, limit_warnings
from core.training.shared_work import one_for_each_work
from tuning import records
from tuning.apart import a_rank
from tuning.config import SweepSpec
from tuning.data_words import data_warnings
from tuning.events import Prepared, Warned, Watcher
from tuning.handing_out import PreparedFiles
from tuning.space import bind, corner_proposals
from tuning.validate import late_guard

_PACKAGES = ("unlearn-tune", "torch", "ray", "optuna", "deepspeed", "peft", "transformers")


def prepare(
    spec: SweepSpec,
    watcher: Watcher,
    *,
    threads: int,
    early: Any | None = None,
    first: Callable[[Mapping[str, str]], None] | None = None,
) -> tuple[SweepSpec, records.RunFacts, PreparedFiles]:
    """Do what all trials share, once, in a process of its own; resolve what depends on the hardware.

    Args:
        spec: The sweep.
        watcher: Who is shown what happens.
        threads: CPU cores that it may take.
        early: A rank that is there already, to do it; see :func:`~tuning.apart.early_rank`.
        first: Looks at what names model and data, before the weights are loaded; may raise.
    """
    began = time.monotonic()
    trials = [bind(spec, proposal, where="sweep") for proposal in corner_proposals(spec)]
    with a_rank(spec, threads=threads, early=early) as call:
        if first is not None:
            first(call(_outlined_identity, trials[0]))
        facts, hardware, notices, prepared = call(_prepare_all, one_for_each_work(trials))
    scale = RetainScale.of(facts.baseline, facts.report_baseline)
    chosen = spec.with_auto_as(scale.metric)
    selection = chosen.trial_selection()
    warned = [late_guard(selection), *limit_warnings(selection, facts.baseline)]
    facts = replace(
        facts,
        scale=scale.why if spec.has_auto else "",
        warnings=[warning for warning in warned if warning],
    )
    watcher.show(
        Prepared(
            baseline=dict(facts.baseline),
            seconds=time.monotonic() - began,
            limited=selection.limited_metrics,
            scale=facts.scale,
        )
    )
    for text in (*facts.warnings, *notices, *data_warnings(facts.data_counts)):
        watcher.show(Warned(text=text))
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    facts = replace(facts, versions=versions, created=records.now())
    return chosen.model_copy(update={"engine": dict(spec.engine) | hardware}), facts, prepared


def _outlined_identity(warm: Any, group: Any, trial: TrialConfig) -> dict[str, str]:
    """Runs on a rank: what names model and data, by the outline of the model, without its weights."""
    return _identity(warm.outlined, trial)


def _identity(warm: Any, trial: TrialConfig) -> dict[str, str]:
    from core.model.loading import retain_only_identity

    identity = {"model": warm.model(trial).identity}
    identity |= {f"data.{part}": value for part, value in warm.data(trial).identity.items()}
    other = retain_only_identity(trial.model)
    return identity if other is None else identity | {"model.retain_only": other}


def _prepare_all(
    warm: Any, group: Any, trials: list[TrialConfig]
) -> tuple[records.RunFacts, dict[str, str], list[str], PreparedFiles]:
    """Runs on a rank: shared work of all trials.

    Returns:
        What is recorded of it, the engine's precision and device, notices, and the files that it left.
    """
    from core.measuring.baselines import baseline_levels
    from core.store import artifacts
    from core.worker import share_work

    with artifacts.noted() as files:
        for trial in trials:
            share_work(trial, warm=warm, group=group, others=trials)
    model, data = warm.model(trials[0]), warm.data(trials[0])
    baselines = {}
    for part in ("probe", "report"):
        levels = baseline_levels(trials[0], warm, group, part=part)
        baselines[part] = {f"{k}_nll": v.nll for k, v in levels.items()} | {
            f"{k}_accuracy": v.accuracy for k, v in levels.items()
        }
    facts = records.RunFacts(
        identity=_identity(warm, trials[0]),
        rows={part: len(rows) for part, rows in data.parts.items()},
        data_counts=data.counts,
        baseline=baselines["probe"],
        report_baseline=baselines["report"],
    )
    dtype = "bf16" if "bfloat16" in str(model.dtype) else "fp32"
    hardware = {"dtype": dtype, "device": model.device.type}
    return facts, hardware, warm.notices(trials[0]), PreparedFiles.here(files)
