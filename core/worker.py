"""The whole story of a trial, from a configuration to its best adapter.

Baselines first, then steps and probes. Before a probe is handed out, its history line and, if it is the
best so far, its adapter are on disk: whoever runs the trial may stop it at any probe and needs nothing
more from it. All ranks of a trial run this code and see the same probes.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from core.config import TrialConfig
from core.data.tokens import TokenSplits
from core.measuring.baselines import baseline_levels, baseline_strength
from core.measuring.calibration import calibrated
from core.measuring.meter import Meter, stop_metrics
from core.measuring.reporting import Decision, Reporter
from core.measuring.selection import Probe, StoppedBy, best_probe, is_past_target
from core.metrics.probes import MEASURED, Levels, degradation
from core.model.loading import LoadedModel, forward_of
from core.model.source import locate
from core.store.durable import append_line
from core.training.adapter import DifferenceAdapter, InitialFactors, load_adapter, scaled
from core.training.engine import Engine
from core.training.full_parameters import FullParameters, is_model_folder
from core.training.initialisation import initial_factors
from core.training.ranks import Group, join_alone
from core.training.steps import Steps, Trained
from core.training.warm import Bench

AT_UTILITY = "forget_closure_at_utility"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a finished trial leaves."""

    probes: tuple[Probe, ...]
    best: Probe | None
    decision: Decision


def run_trial(
    config: TrialConfig,
    reporter: Reporter,
    *,
    folder: Path | None = None,
    group: Group | None = None,
    bench: Bench | None = None,
) -> TrialResult:
    """Run a trial to its end, or until ``reporter`` stops it.

    Args:
        config: The trial.
        reporter: Receives each probe and decides.
        folder: Where history and adapter are committed; nothing is written if absent.
        group: Ranks of the trial; this process alone if absent.
        bench: What the process keeps from earlier work.

    Raises:
        UserError: If model or data are not as the configuration says.
    """
    seen: list[Probe] = []
    decision = Decision()
    trial = probes(config, folder=folder, group=group, bench=bench)
    try:
        for probe in trial:
            seen.append(probe)
            decision = reporter.report(probe)
            if decision.stops:
                break
    finally:
        trial.close()
    return TrialResult(
        probes=tuple(seen), best=best_probe(seen, config.selection), decision=decision
    )


def probes(
    config: TrialConfig,
    *,
    folder: Path | None = None,
    group: Group | None = None,
    bench: Bench | None = None,
) -> Generator[Probe, None, None]:
    """The trial: yields a probe every ``selection.probe_every`` steps; closing the iterator ends it.

    Args:
        config: The trial.
        folder: Where the first rank commits ``history.jsonl`` and ``adapter/`` before each probe.
        group: Ranks of the trial; this process alone if absent.
        bench: What the process keeps from earlier trials.

    Raises:
        UserError: If model or data are not as the configuration says, or there is nothing to forget.
        IntegrityError: If the base weights changed.
    """
    started = time.monotonic()
    if group is None:
        group, _meeting = join_alone(config.engine)
    bench = bench or Bench()
    model, data = bench.model(config), bench.data(config)
    baseline = baseline_levels(config, bench, group, part="probe")
    steps = Steps(config, model, data)
    measure = _Probing(config, bench, group, baseline)
    trained = _attach(config, model, data, group)
    engine: Engine | None = None
    history = _History(config, folder if group.is_first else None, started)
    try:
        engine = Engine(
            trained.model,
            engine=config.engine,
            optimizer=config.optimizer,
            plan=steps.plan,
            max_steps=config.selection.max_steps,
            dtype=model.dtype,
        )
        history.begin(baseline, trained, bench.checksum)
        for step in range(1, config.selection.max_steps + 1):
            steps.train(engine, trained, group)
            is_last = step == config.selection.max_steps
            if step % config.selection.probe_every and not is_last:
                continue
            metrics = group.agree(measure(engine, trained) | steps.state())
            target_nll = baseline["target"].nll
            probe = history.judge(step, metrics, target_nll=target_nll, is_last=is_last)
            if history.is_best(probe):
                tensors = trained.exported(engine)  # every rank takes part: ZeRO 3 gathers
                if folder is not None and group.is_first:
                    factor = metrics["calibration_factor"] if measure.is_calibrated else 1.0
                    base = locate(config.model)[0]
                    trained.save(folder / "adapter", tensors, base=base, factor=factor)
            history.commit(probe)
            if probe.stopped_by is not None and config.engine.zero_stage < 3:
                bench.verify()  # before anybody is told
            yield probe
            if probe.stopped_by is not None:
                return
    finally:
        if engine is not None:
            engine.destroy()
        trained.detach()
        if config.engine.zero_stage == 3 and config.adapter.kind == "lora":
            bench.drop_model()
        else:
            bench.verify()


def prepare(config: TrialConfig, *, bench: Bench, group: Group) -> Levels:
    """Do the work that all trials share: baselines, terms of the reference model, Fisher, decomposition.

    Returns:
        Baseline levels of the probe split.

    Raises:
        UserError: If model or data are not as the configuration says, or there is nothing to forget.
    """
    baseline = baseline_levels(config, bench, group, part="probe")
    baseline_levels(config, bench, group, part="report")
    Steps(config, bench.model(config), bench.data(config))
    if config.adapter.kind == "lora":
        initial_factors(config, bench.model(config), bench.data(config))
    return baseline


def report_metrics(
    config: TrialConfig, adapter: Path, *, bench: Bench, group: Group
) -> dict[str, float]:
    """Metrics of a saved adapter, or model, on the reporting split; adapters through stock PEFT.

    Args:
        config: The trial that made the adapter.
        adapter: Its folder.
        bench: What the process keeps.
        group: A group of this process alone.

    Returns:
        The metrics of a probe, and ``forget_closure_at_utility`` with its ``calibration_factor``. Where that
        was the objective, what is saved is the scaled model already, and is measured as it is.
    """
    model = bench.model(config)
    baseline = baseline_levels(config, bench, group, part="report")
    if is_model_folder(adapter):
        full = FullParameters.loaded(model, adapter)
        return _reported(config, bench, group, baseline, full.model, full.scaled)
    adapted = load_adapter(model.network, adapter)
    try:
        return _reported(
            config, bench, group, baseline, adapted, lambda factor: scaled(adapted, factor)
        )
    finally:
        adapted.unload()  # type: ignore[operator]  # a PeftModel


def _reported(
    config: TrialConfig,
    bench: Bench,
    group: Group,
    baseline: Levels,
    network: torch.nn.Module,
    scale: Callable[[float], AbstractContextManager[None]],
) -> dict[str, float]:
    data, forward = bench.data(config), forward_of(network)
    meter = Meter(bench.model(config), group, batch_size=config.batch.probe_batch_size)
    levels = meter.levels(forward, data, part="report")
    metrics = degradation(levels, baseline)
    if config.selection.metric == AT_UTILITY:
        return metrics | {AT_UTILITY: metrics["forget_closure"]}
    strength = None
    if config.selection.utility == "retain_extraction_strength":
        strength = baseline_strength(config, bench, group, part="report")
    found = calibrated(
        config,
        meter,
        forward,
        data,
        part="report",
        levels=levels,
        baseline=baseline,
        original_strength=strength,
        scaled=scale,
    )
    return metrics | {name: found[name] for name in (AT_UTILITY, "calibration_factor")}


class _Probing:
    """The metrics of a probe: those that every trial has, and those that its configuration asks for."""

    def __init__(self, config: TrialConfig, bench: Bench, group: Group, baseline: Levels) -> None:
        """Measure what is needed of the target model."""
        self._config, self._data, self._baseline = config, bench.data(config), baseline
        self._meter = Meter(bench.model(config), group, batch_size=config.batch.probe_batch_size)
        self.is_calibrated = config.selection.metric == AT_UTILITY
        self._strength: float | None = None
        if self.is_calibrated and config.selection.utility == "retain_extraction_strength":
            self._strength = baseline_strength(config, bench, group, part="probe")

    def __call__(self, engine: Engine, trained: Trained) -> dict[str, float]:
        """Measure the model as it is now."""
        forward = forward_of(engine.module)
        levels = self._meter.levels(forward, self._data, part="probe")
        stops = stop_metrics(self._config, self._meter, engine.module, self._data)
        if not self.is_calibrated:
            return degradation(levels, self._baseline) | stops
        return stops | calibrated(
            self._config,
            self._meter,
            forward,
            self._data,
            part="probe",
            levels=levels,
            baseline=self._baseline,
            original_strength=self._strength,
            scaled=trained.scaled,
        )


def _attach(config: TrialConfig, model: LoadedModel, data: TokenSplits, group: Group) -> Trained:
    """What is trained: an adapter on the target model, or a copy of it."""
    if config.adapter.kind == "full":
        return FullParameters(model)
    return DifferenceAdapter(
        model.network,
        _agreed_factors(config, model, data, group),
        rank=config.adapter.rank,
        scaling=config.adapter.scaling,
        dtype=model.dtype,
    )


def _agreed_factors(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, group: Group
) -> dict[str, InitialFactors]:
    """The first rank's factors on every rank, bit for bit; only the first computes them."""
    made = initial_factors(config, model, data) if group.is_first else {}
    shapes = group.agree(
        {n: (f.a.shape, None if f.b is None else f.b.shape) for n, f in made.items()}
    )
    agreed = {}
    for name, (shape_a, shape_b) in shapes.items():
        mine = made.get(name)
        a = (mine.a if mine else torch.empty(shape_a)).to(model.device)
        b = None
        if shape_b is not None:
            b = (mine.b if mine and mine.b is not None else torch.empty(shape_b)).to(model.device)
        group.share([a] if b is None else [a, b])
        agreed[name] = InitialFactors(a=a, b=b)
    return agreed


class _History:
    """The trial's probes so far, judged and committed."""

    def __init__(self, config: TrialConfig, folder: Path | None, started: float) -> None:
        self._selection = config.selection
        self._path = None if folder is None else folder / "history.jsonl"
        self._started = started
        self._probes: list[Probe] = []

    def begin(self, baseline: Levels, trained: Trained, base_checksum: str) -> None:
        """Commit the line of step 0: the untouched model."""
        if self._path is None:
            return
        rms_a, rms_b = trained.initial_rms()
        line = {
            "step": 0,
            "metrics": degradation({n: baseline[n] for n in MEASURED}, baseline),
            "seconds": self._seconds(),
            "target_nll": baseline["target"].nll,
            "target_accuracy": baseline["target"].accuracy,
            "initial_rms": {"a0": rms_a, "b0": rms_b},
            "base_checksum": base_checksum,
        }
        append_line(self._path, line)

    def judge(
        self, step: int, metrics: Mapping[str, float], *, target_nll: float, is_last: bool
    ) -> Probe:
        """Make the probe of ``step`` and decide whether the trial ends with it by its own rules."""
        probe = Probe(step=step, metrics=metrics, seconds=self._seconds())
        stopped_by: StoppedBy | None = "budget" if is_last else None
        rule = self._selection.past_target
        if not math.isfinite(metrics["forget_nll"]):
            stopped_by = "non_finite"
        elif rule is not None and is_past_target(
            [*self._probes, probe], self._selection, rule, target_nll=target_nll
        ):
            stopped_by = "past_target"
        elif self._selection.stop_when and all(
            metrics[rule.metric] <= rule.at_most for rule in self._selection.stop_when
        ):
            stopped_by = "stop_when"
        probe = Probe(step=step, metrics=metrics, seconds=probe.seconds, stopped_by=stopped_by)
        self._probes.append(probe)
        return probe

    def is_best(self, probe: Probe) -> bool:
        """Whether the newest probe is the one that counts so far."""
        return best_probe(self._probes, self._selection) is probe

    def commit(self, probe: Probe) -> None:
        """Put the probe's line on disk."""
        if self._path is not None:
            append_line(
                self._path,
                {
                    "step": probe.step,
                    "metrics": dict(probe.metrics),
                    "seconds": probe.seconds,
                    "is_best": self.is_best(probe),
                    "stopped_by": probe.stopped_by,
                },
            )

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)
