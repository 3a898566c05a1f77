"""The suites of ``evaluate`` on finalists: what the untouched model measures, what they do, and whether limits hold."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from core.config import EngineConfig, TrialConfig
from core.config.evaluation import parse_data
from core.errors import ConfigError
from tuning.apart import CallForEach, a_rank
from tuning.config import SweepSpec
from tuning.evaluation_limits import EvaluationSpec
from tuning.events import EventLog, Reporting
from tuning.ledger import Ledger
from tuning.space import bind, corner_proposals
from tuning.storage.home import Home, adapter_of
from tuning.storage.keeping import Keeper

Work = tuple[int, TrialConfig, Home]
"""Number, configuration and attempt of a trial."""


def evaluate_untouched(spec: SweepSpec, *, threads: int) -> dict[str, float]:
    """Metrics of the model before unlearning; none if the sweep asks for no evaluation.

    Args:
        spec: The sweep.
        threads: CPU cores that it may take.

    Raises:
        ConfigError: If a constraint names a metric that its suite does not measure.
        UserError: If a suite lacks rows or a model.
    """
    if not spec.evaluation.all_suites:
        return {}
    trial = bind(spec, next(corner_proposals(spec)), where="sweep")
    with a_rank(spec, threads=threads) as call:
        found: dict[str, float] = call(_evaluated, (trial, None, spec.evaluation))
    refuse_unknown_metrics(spec.evaluation, found)
    return found


def refuse_unknown_metrics(evaluation: EvaluationSpec, found: Mapping[str, float]) -> None:
    """Refuse limits on what was not measured.

    Raises:
        ConfigError: With each, and the nearest name that there is.
    """
    problems = []
    for i, limit in enumerate(evaluation.constraints):
        if limit.metric in found:
            continue
        own = [name for name in found if name.startswith(f"{limit.suite}.")]
        near = get_close_matches(limit.metric, own, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        problems.append(
            f"evaluation.constraints.{i}.metric: no metric {limit.metric!r}; {hint}"
            f"the suite {limit.suite} measures {', '.join(own)}"
        )
    if problems:
        raise ConfigError("sweep", problems)


def evaluate_finalists(
    spec: SweepSpec,
    work: list[Work],
    ledger: Ledger,
    log: EventLog,
    keeper: Keeper,
    call: CallForEach,
) -> None:
    """Evaluate finalists, each recorded as it is done.

    Args:
        spec: The sweep.
        work: The finalists.
        ledger: Takes what is measured.
        log: Is told which trials are measured.
        keeper: Keeps what is measured.
        call: Calls a function on ranks.
    """
    log.emit(Reporting(numbers=tuple(number for number, *_ in work)))
    for number, found in call(_numbered, [(*one, spec.evaluation) for one in work]):
        broken = {c.metric: c.violation(found[c.metric]) for c in spec.evaluation.constraints}
        ledger.set_evaluation(number, found, violations=broken)
        keeper.promise()


def _numbered(
    warm: Any, group: Any, work: tuple[int, TrialConfig, Home, EvaluationSpec]
) -> tuple[int, dict[str, float]]:
    """Runs on a rank."""
    number, trial, home, evaluation = work
    with adapter_of(home) as adapter:
        return number, _evaluated(warm, group, (trial, adapter, evaluation))


def _evaluated(
    warm: Any, group: Any, work: tuple[TrialConfig, Path | None, EvaluationSpec]
) -> dict[str, float]:
    """Runs on a rank: metrics as ``SUITE.METRIC``."""
    from core.evaluation import EvaluationRequest, evaluate
    from core.training.full_parameters import is_model_folder

    trial, saved, evaluation = work
    source = trial.model.source
    is_whole = saved is not None and is_model_folder(saved)
    result = evaluate(
        EvaluationRequest(
            model=str(saved) if is_whole else source,
            suites=evaluation.all_suites,
            tokenizer=trial.model.tokenizer or (source if is_whole else None),
            adapter=None if is_whole else saved,
            data=parse_data(trial.data.model_dump(), where="data"),
            retain_only=trial.model.retain_only,
            initial=source if is_whole else None,
            limit=evaluation.limit,
            batch_size=trial.batch.probe_batch_size,
            engine=EngineConfig(dtype=trial.engine.dtype, device=trial.engine.device),
        ),
        tell=lambda line: None,
    )
    return {
        f"{suite}.{metric}": float(value)
        for suite, found in result["suites"].items()
        for metric, value in found["metrics"].items()
        if isinstance(value, int | float) or value in ("nan", "inf", "-inf")
    }
