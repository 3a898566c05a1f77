"""The whole story of a trial, from a configuration to its best adapter.

Baselines first, then steps and probes. Before a probe is handed out, its history line and, if it is the
best so far, its adapter are on disk: whoever runs the trial may stop it at any probe and needs nothing
more from it. All ranks of a trial run this code and see the same probes.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import artifacts
from core.adapters import DifferenceAdapter, InitialFactors, load_adapter, save_adapter
from core.commit import append_line
from core.config import BatchPlan, TrialConfig
from core.data.splits import split_data
from core.data.tokens import (
    TokenRow,
    TokenSplits,
    collate,
    reading_order,
    tokenise_splits,
)
from core.engine import Engine, Group, join_alone
from core.errors import DataError, IntegrityError, ModelError, NothingToForgetError
from core.initialisation import initial_factors
from core.losses import FORGET_LOSSES, RETAIN_LOSSES, Reduction
from core.metrics.probes import MEASURED, Level, degradation, level, token_sums
from core.models import LoadedModel, load_model, locate, weights_checksum
from core.reporting import Decision, Reporter
from core.selection import Probe, StoppedBy, best_probe, is_past_target

MIN_GAP_NATS = 0.3
"""Smallest difference of cross-entropy between forget and approximate set that leaves something to forget."""

Levels = Mapping[str, Level]
Forward = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Bench:
    """What a process keeps warm from one trial to the next: the target model and the tokenised rows."""

    _models: dict[Any, LoadedModel] = field(default_factory=dict)
    _weights: dict[str, Tensor] = field(default_factory=dict)
    _checksum: str = ""
    _data: dict[Any, TokenSplits] = field(default_factory=dict)

    def model(self, config: TrialConfig) -> LoadedModel:
        """The target model, loaded at the first call."""
        key = (config.model, config.engine.dtype, config.engine.device)
        if key not in self._models:
            self._models.clear()
            self._models[key] = load_model(config.model, config.engine)
            self._weights = dict(self._models[key].network.named_parameters())
            self._checksum = weights_checksum(self._weights)
        return self._models[key]

    def data(self, config: TrialConfig) -> TokenSplits:
        """The tokenised splits, read at the first call."""
        key = (config.model, config.data)
        if key not in self._data:
            splits = split_data(config.data)
            self._data[key] = tokenise_splits(splits, config.data, self.model(config).tokenizer)
        return self._data[key]

    @property
    def checksum(self) -> str:
        """Checksum of the base weights when they were loaded; each trial verifies it when it ends."""
        return self._checksum

    def verify(self) -> None:
        """Compare the base weights with what was loaded, also while an adapter sits on them.

        Raises:
            IntegrityError: If they changed.
        """
        if weights_checksum(self._weights) != self._checksum:
            raise IntegrityError("the base model's weights changed during a trial")

    def drop_model(self) -> None:
        """Forget a model that an engine has taken apart (ZeRO 3)."""
        self._models.clear()


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
    factors = _agreed_factors(config, model, data, group)
    adapter = DifferenceAdapter(
        model.network,
        factors,
        rank=config.adapter.rank,
        scaling=config.adapter.scaling,
        dtype=model.dtype,
    )
    engine: Engine | None = None
    history = _History(config, folder if group.is_first else None, started)
    try:
        plan = config.batch_plan()
        engine = Engine(
            adapter.model,
            engine=config.engine,
            optimizer=config.optimizer,
            plan=plan,
            max_steps=config.selection.max_steps,
            dtype=model.dtype,
        )
        history.begin(baseline, adapter, bench.checksum)
        streams = _streams(config, data)
        target_nll = baseline["approximate"].nll
        for step in range(1, config.selection.max_steps + 1):
            _train_step(engine, adapter, config, plan, streams, group, model.device)
            is_last = step == config.selection.max_steps
            if step % config.selection.probe_every and not is_last:
                continue
            levels = _measure(_forward(engine.module), data, config, group, model, part="probe")
            metrics = group.agree(degradation(levels, baseline))
            probe = history.judge(step, metrics, target_nll=target_nll, is_last=is_last)
            if history.is_best(probe):
                tensors = adapter.exported(engine)  # every rank takes part: ZeRO 3 gathers
                if folder is not None and group.is_first:
                    save_adapter(
                        folder / "adapter",
                        tensors,
                        scaling=config.adapter.scaling,
                        base=locate(config.model)[0],
                        transposed=adapter.is_transposed,
                    )
            history.commit(probe)
            if probe.stopped_by is not None and config.engine.zero_stage < 3:
                bench.verify()  # before anybody is told
            yield probe
            if probe.stopped_by is not None:
                return
    finally:
        if engine is not None:
            engine.destroy()
        adapter.detach()
        if config.engine.zero_stage == 3:
            bench.drop_model()
        else:
            bench.verify()


def prepare(config: TrialConfig, *, bench: Bench, group: Group) -> Levels:
    """Do the work that all trials share: load, tokenise, measure baselines, Fisher and decomposition.

    Returns:
        Baseline levels of the probe split.

    Raises:
        UserError: If model or data are not as the configuration says, or there is nothing to forget.
    """
    baseline = baseline_levels(config, bench, group, part="probe")
    baseline_levels(config, bench, group, part="report")
    initial_factors(config, bench.model(config), bench.data(config))
    return baseline


def report_metrics(
    config: TrialConfig, adapter: Path, *, bench: Bench, group: Group
) -> dict[str, float]:
    """Metrics of a saved adapter on the reporting split, through stock PEFT.

    Args:
        config: The trial that made the adapter.
        adapter: Its folder.
        bench: What the process keeps.
        group: A group of this process alone.
    """
    model, data = bench.model(config), bench.data(config)
    baseline = baseline_levels(config, bench, group, part="report")
    adapted = load_adapter(model.network, adapter)
    try:
        levels = _measure(_forward(adapted), data, config, group, model, part="report")
    finally:
        adapted.unload()  # type: ignore[operator]  # a PeftModel
    return degradation(levels, baseline)


def baseline_levels(config: TrialConfig, bench: Bench, group: Group, *, part: str) -> Levels:
    """Levels of all four sets under the target model, measured once and cached.

    Raises:
        NothingToForgetError: If the forget set is not predicted clearly better than the approximate set.
    """
    measured = group.agree(_baseline(config, bench, part) if group.is_first else None)
    levels = {
        name: Level(
            nll=float(measured[f"{name}_nll"]), accuracy=float(measured[f"{name}_accuracy"])
        )
        for name in (*MEASURED, "approximate")
    }
    for name, at in levels.items():
        if not math.isfinite(at.nll):
            raise ModelError(
                f"model.source: the target model's cross-entropy on the {name} set is {at.nll} before "
                "unlearning; its weights are damaged, or engine.dtype is too small for them (try fp32)"
            )
    forget, approximate = levels["forget"].nll, levels["approximate"].nll
    if part == "probe" and approximate - forget < MIN_GAP_NATS:
        raise NothingToForgetError(
            f"data.forget: there is nothing to forget: its cross-entropy {forget:.3f} must lie at least "
            f"{MIN_GAP_NATS} nats below the approximate set's, which is {approximate:.3f}; choose text that "
            "the model has memorised, and an approximate set of the same kind that it has not"
        )
    return levels


def _baseline(config: TrialConfig, bench: Bench, part: str) -> dict[str, float]:
    model, data = bench.model(config), bench.data(config)
    names = ("forget", *(f"{name}_{part}" for name in ("retain", "general", "approximate")))

    def measure() -> dict[str, float]:
        alone = Group(rank=0, size=1)
        found: dict[str, float] = {}
        for name in names:
            at = _level(_forward(model.network), data[name], config, alone, model)
            role = name.partition("_")[0]
            found |= {f"{role}_nll": at.nll, f"{role}_accuracy": at.accuracy}
        return found

    key = {
        "model": model.identity,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "rows": {name: data.identity[name] for name in names},
    }
    return artifacts.record("baselines", key, measure)


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


@dataclass(frozen=True, kw_only=True)
class _Streams:
    forget: Iterator[TokenRow]
    retain: Iterator[TokenRow] | None


def _streams(config: TrialConfig, data: TokenSplits) -> _Streams:
    forget = reading_order(data["forget"], seed=config.seed, purpose="forget")
    if RETAIN_LOSSES[config.method.retain_loss] is None:
        return _Streams(forget=forget, retain=None)
    part = "retain_train" if config.method.retain_source == "in_distribution" else "general_train"
    if not data[part]:
        raise DataError(
            f"data.{part.partition('_')[0]}: no row is left to train on after data.probe_rows and "
            f"data.report_rows, and method.retain_source={config.method.retain_source} reads them; give "
            "more rows, or lower data.probe_rows or data.report_rows"
        )
    return _Streams(
        forget=forget, retain=reading_order(data[part], seed=config.seed, purpose="retain")
    )


def _train_step(
    engine: Engine,
    adapter: DifferenceAdapter,
    config: TrialConfig,
    plan: BatchPlan,
    streams: _Streams,
    group: Group,
    device: torch.device,
) -> None:
    """One optimiser step over the same global batch whatever the micro-batches and ranks."""
    forget = list(islice(streams.forget, plan.global_batch_size))
    retain = list(islice(streams.retain, plan.global_batch_size)) if streams.retain else []
    forget_loss = FORGET_LOSSES[config.method.forget_loss]
    retain_loss = RETAIN_LOSSES[config.method.retain_loss]
    n_forget = _count(forget, forget_loss.reduction)
    n_retain = _count(retain, retain_loss.reduction) if retain_loss else 0

    def share(mine: slice) -> Tensor:
        forget_rows, retain_rows = forget[mine], retain[mine]
        batch = collate([*forget_rows, *retain_rows], device)
        logits = engine.forward(batch.ids, batch.mask)
        n = len(forget_rows)
        loss = forget_loss.compute(logits[:n], batch.labels[:n])
        loss = loss * (_count(forget_rows, forget_loss.reduction) / n_forget)
        if retain_loss is not None:
            reference = None
            if retain_loss.needs_reference:
                with torch.no_grad(), adapter.disabled():
                    reference = _forward(engine.module)(batch.ids[n:], batch.mask[n:])
            kept = retain_loss.compute(logits[n:], reference, batch.labels[n:])
            weight = config.method.retain_weight * _count(retain_rows, retain_loss.reduction)
            loss = loss + kept * (weight / n_retain)
        return loss

    size = plan.micro_batch_size
    starts = ((i * plan.ranks + group.rank) * size for i in range(plan.gradient_accumulation_steps))
    engine.step(partial(share, slice(start, start + size)) for start in starts)


def _count(rows: Sequence[TokenRow], reduction: Reduction) -> int:
    return sum(row.n_counted for row in rows) if reduction == "token" else len(rows)


def _forward(network: Any) -> Forward:
    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    return forward


def _measure(
    forward: Forward,
    data: TokenSplits,
    config: TrialConfig,
    group: Group,
    model: LoadedModel,
    *,
    part: str,
) -> Levels:
    rows = {name: data[name if name == "forget" else f"{name}_{part}"] for name in MEASURED}
    return {name: _level(forward, rows[name], config, group, model) for name in MEASURED}


@torch.no_grad()
def _level(
    forward: Forward,
    rows: Sequence[TokenRow],
    config: TrialConfig,
    group: Group,
    model: LoadedModel,
) -> Level:
    """Level of a set; rows are dealt out over ranks, and batched by length so that little is padding."""
    by_length = sorted(rows, key=lambda row: len(row.ids))
    mine = [by_length[i] for i in group.mine(len(by_length))]
    sums = torch.zeros(3, dtype=torch.float64, device=model.device)
    size = config.batch.probe_batch_size
    n_batches = -(-len(by_length) // (size * group.size))  # the same on every rank: ZeRO 3 gathers
    for i in range(n_batches):
        chunk = mine[i * size : (i + 1) * size]
        batch = collate(chunk or by_length[:1], model.device)
        logits = forward(batch.ids, batch.mask)
        if chunk:
            sums += token_sums(logits, batch.labels)
    return level(group.sum(sums))


class _History:
    """The trial's probes so far, judged and committed."""

    def __init__(self, config: TrialConfig, folder: Path | None, started: float) -> None:
        self._selection = config.selection
        self._path = None if folder is None else folder / "history.jsonl"
        self._started = started
        self._probes: list[Probe] = []

    def begin(self, baseline: Levels, adapter: DifferenceAdapter, base_checksum: str) -> None:
        """Commit the line of step 0: the untouched model."""
        if self._path is None:
            return
        rms_a, rms_b = adapter.initial_rms()
        line = {
            "step": 0,
            "metrics": degradation({n: baseline[n] for n in MEASURED}, baseline),
            "seconds": self._seconds(),
            "target_nll": baseline["approximate"].nll,
            "target_accuracy": baseline["approximate"].accuracy,
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
