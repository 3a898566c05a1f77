"""Measure sets of rows under a model: during a trial, before it, and at the end of a sweep.

Rows are dealt out over the ranks; every rank gets the same numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from core import artifacts
from core.bench import Bench
from core.calibration import largest_factor
from core.config import ModelConfig, TrialConfig
from core.continuations import suffix_continuations
from core.data.tokens import Batch, TokenRow, TokenSplits, collate
from core.engine import Group
from core.errors import ModelError, NothingToForgetError
from core.metrics.memorization import (
    exact_memorization,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
)
from core.metrics.probes import MEASURED, Level, degradation, level, token_sums
from core.models import LoadedModel, load_model, retain_only_identity, vocabulary_size

MIN_GAP_NATS = 0.3
"""Smallest difference of cross-entropy between forget set and target that leaves something to forget."""

_DECODED_AT_ONCE = 64

Levels = Mapping[str, Level]
Forward = Callable[[Tensor, Tensor], Tensor]
RowMetric = Callable[[Tensor, Tensor], Tensor]

ROW_METRICS: Mapping[str, RowMetric] = {
    "memorization_accuracy": memorization_accuracy,
    "extraction_strength": extraction_strength,
    "exact_memorization": exact_memorization,
}
"""Metrics of single rows, from logits and labels, ``(B,)``."""


def forward_of(network: Any) -> Forward:
    """Logits of a model from ids and mask."""

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    return forward


class Meter:
    """Measures rows in batches, on a model's device, over one group of ranks."""

    def __init__(self, model: LoadedModel, group: Group, *, batch_size: int) -> None:
        """Nothing is measured yet."""
        self._size = batch_size
        self._device, self._group = model.device, group

    def levels(self, forward: Forward, data: TokenSplits, *, part: str) -> Levels:
        """Level of the forget set and of one part of retain and general set."""
        rows = {name: data[name if name == "forget" else f"{name}_{part}"] for name in MEASURED}
        return {name: self.level(forward, rows[name]) for name in MEASURED}

    @torch.no_grad()
    def level(self, forward: Forward, rows: Sequence[TokenRow]) -> Level:
        """Level of a set."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        for batch, is_mine in self._batches(rows):
            logits = forward(batch.ids, batch.mask)
            if is_mine:
                sums += token_sums(logits, batch.labels)
        return level(self._group.sum(sums))

    @torch.no_grad()
    def row_mean(self, forward: Forward, rows: Sequence[TokenRow], metric: RowMetric) -> float:
        """Mean over rows of a metric of single rows."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch, is_mine in self._batches(rows):
            logits = forward(batch.ids, batch.mask)
            if is_mine:
                values = metric(logits, batch.labels)
                sums += torch.stack(
                    [values.double().sum(), torch.tensor(float(len(values))).to(sums)]
                )
        total, count = self._group.sum(sums).tolist()
        return float(total / count)

    @torch.no_grad()
    def extraction_likelihood(self, network: Any, rows: Sequence[TokenRow], *, n: int) -> float:
        """Mean EL_n over rows with more than ``n`` tokens."""
        long = [row.ids for row in rows if len(row.ids) > n]
        if not long:
            raise ModelError(
                f"selection.stop_when: el_{n} needs forget rows of more than {n} tokens, the longest has "
                f"{max(len(row.ids) for row in rows)}; raise data.forget.max_tokens or take a smaller n"
            )
        mine = [long[i] for i in self._group.mine(len(long))]
        found = (
            suffix_continuations(network, mine, min_length=n, batch_size=_DECODED_AT_ONCE)
            if mine
            else []
        )
        values = [
            extraction_likelihood(generated, truth, n=n)
            for generated, truth in zip(found, mine, strict=True)
        ]
        total = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self._device)
        value, count = self._group.sum(total).tolist()
        return float(value / count)

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[tuple[Batch, bool]]:
        """Batches by length, so that little is padding; as many on every rank, for ZeRO 3 gathers."""
        by_length = sorted(rows, key=lambda row: len(row.ids))
        mine = [by_length[i] for i in self._group.mine(len(by_length))]
        n_batches = -(-len(by_length) // (self._size * self._group.size))
        for i in range(n_batches):
            chunk = mine[i * self._size : (i + 1) * self._size]
            yield collate(chunk or by_length[:1], self._device), bool(chunk)


def stop_metrics(
    config: TrialConfig, meter: Meter, network: Any, data: TokenSplits
) -> dict[str, float]:
    """The forget metrics that ``selection.stop_when`` names."""
    found = {}
    for name in (rule.metric for rule in config.selection.stop_when):
        if name in ROW_METRICS:
            found[name] = meter.row_mean(forward_of(network), data["forget"], ROW_METRICS[name])
        else:
            n = int(name.removeprefix("el_"))
            found[name] = meter.extraction_likelihood(network, data["forget"], n=n)
    return found


def calibrated(
    config: TrialConfig,
    meter: Meter,
    forward: Forward,
    data: TokenSplits,
    *,
    part: str,
    levels: Levels,
    baseline: Levels,
    original_strength: float | None,
    scaled: Callable[[float], AbstractContextManager[None]],
) -> dict[str, float]:
    """Metrics at equal utility (UWC): the trained difference scaled back until utility is kept.

    Args:
        config: Says which utility, and which share ``tau`` of it is kept.
        meter: Measures.
        forward: The model with the whole difference.
        data: Rows.
        part: ``probe`` or ``report``.
        levels: Levels of the model with the whole difference.
        baseline: Levels of the target model.
        original_strength: The target model's extraction strength on the retain part, where that is the
            utility.
        scaled: Makes the difference count a factor within a context.

    Returns:
        The metrics of a probe of the scaled model; ``forget_closure_at_utility``, which is its
        ``forget_closure``; ``calibration_factor`` in [0, 1]; and of the whole difference
        ``unscaled_forget_closure`` and ``unscaled_retain_drop``. A model that diverged is not scaled.

    References:
        Wang et al., "Unlearning with Control", ICLR 2025.
    """
    selection = config.selection
    retain = data[f"retain_{part}"]

    def utility(factor: float) -> float:
        if selection.utility == "retain_utility":
            if factor == 1.0:
                return levels["retain"].accuracy
            with scaled(factor):
                return meter.level(forward, retain).accuracy
        with scaled(factor):
            return meter.row_mean(forward, retain, extraction_strength)

    original = (
        baseline["retain"].accuracy
        if selection.utility == "retain_utility"
        else float(original_strength or 0.0)
    )
    whole = degradation(levels, baseline)
    factor = 1.0
    if all(math.isfinite(at.nll) for at in levels.values()):
        factor = largest_factor(utility, at_least=selection.tau * original)
    metrics = whole
    if factor < 1.0:
        with scaled(factor):
            metrics = degradation(meter.levels(forward, data, part=part), baseline)
    return metrics | {
        "forget_closure_at_utility": metrics["forget_closure"],
        "calibration_factor": factor,
        "unscaled_forget_closure": whole["forget_closure"],
        "unscaled_retain_drop": whole["retain_drop"],
    }


def baseline_strength(config: TrialConfig, bench: Bench, group: Group, *, part: str) -> float:
    """The target model's extraction strength on a retain part, measured once and cached."""
    model, data = bench.model(config), bench.data(config)
    rows = data[f"retain_{part}"]

    def measure() -> dict[str, float]:
        meter = Meter(model, Group(rank=0, size=1), batch_size=config.batch.probe_batch_size)
        return {"value": meter.row_mean(forward_of(model.network), rows, extraction_strength)}

    key = _key(model, {"retain": data.identity[f"retain_{part}"]}) | {"of": "extraction_strength"}
    found = group.agree(
        artifacts.record("baselines", key, measure)["value"] if group.is_first else None
    )
    return float(found)


def baseline_levels(config: TrialConfig, bench: Bench, group: Group, *, part: str) -> Levels:
    """Levels of all sets under the target model, and the target of forgetting; measured once and cached.

    ``target`` is the forget set's level under ``model.retain_only`` where there is one, else the
    approximate set's under the target model.

    Raises:
        ModelError: If a level is not finite.
        NothingToForgetError: If the forget set is not predicted clearly better than the target.
    """
    measured = group.agree(_baseline(config, bench, part) if group.is_first else None)
    levels = {
        name: Level(
            nll=float(measured[f"{name}_nll"]), accuracy=float(measured[f"{name}_accuracy"])
        )
        for name in (*MEASURED, "approximate", "target")
    }
    for name, at in levels.items():
        if not math.isfinite(at.nll):
            raise ModelError(
                f"model.source: the target model's cross-entropy on the {name} set is {at.nll} before "
                "unlearning; its weights are damaged, or engine.dtype is too small for them (try fp32)"
            )
    forget, target = levels["forget"].nll, levels["target"].nll
    if part == "probe" and target - forget < MIN_GAP_NATS:
        other = (
            "its own under model.retain_only"
            if config.model.retain_only
            else "the approximate set's"
        )
        advice = "choose text that the model has memorised, and an approximate set of the same kind that it has not"
        raise NothingToForgetError(
            f"data.forget: there is nothing to forget: its cross-entropy {forget:.3f} must lie at least "
            f"{MIN_GAP_NATS} nats below {other}, which is {target:.3f}; {advice}"
        )
    return levels


def _baseline(config: TrialConfig, bench: Bench, part: str) -> dict[str, float]:
    model, data = bench.model(config), bench.data(config)
    names = ("forget", *(f"{name}_{part}" for name in ("retain", "general", "approximate")))
    meter = Meter(model, Group(rank=0, size=1), batch_size=config.batch.probe_batch_size)

    def measure() -> dict[str, float]:
        found: dict[str, float] = {}
        for name in names:
            at = meter.level(forward_of(model.network), data[name])
            found |= _named(name.partition("_")[0], at)
        return found

    key = _key(model, {name: data.identity[name] for name in names})
    found = artifacts.record("baselines", key, measure)
    source = config.model.retain_only
    if source is None:
        return found | {f"target_{k}": found[f"approximate_{k}"] for k in ("nll", "accuracy")}

    def measure_target() -> dict[str, float]:
        other = load_model(ModelConfig(source=source), config.engine)
        sizes = [vocabulary_size(m.network) for m in (model, other)]
        if sizes[0] != sizes[1] or model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
            raise ModelError(
                f"model.retain_only: {source!r} has another tokenizer than model.source ({sizes[1]} and {sizes[0]} "
                "token ids); the two must be made from one model"
            )
        return _named("target", meter.level(forward_of(other.network), data["forget"]))

    key = _key(model, {"forget": data.identity["forget"]}) | {
        "model": retain_only_identity(config.model)
    }
    return found | artifacts.record("baselines", key, measure_target)


def _named(name: str, at: Level) -> dict[str, float]:
    return {f"{name}_nll": at.nll, f"{name}_accuracy": at.accuracy}


def _key(model: LoadedModel, rows: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model": model.identity,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "rows": dict(rows),
    }
