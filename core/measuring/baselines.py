"""What the target model scores before unlearning, measured once and cached."""

import math
from collections.abc import Mapping
from typing import Any

from core.config import ModelConfig, TrialConfig
from core.errors import ModelError, NothingToForgetError
from core.measuring.meter import Meter
from core.metrics.probes import MEASURED, Level, Levels
from core.model.loading import (
    LoadedModel,
    forward_of,
    load_model,
    retain_only_identity,
    vocabulary_size,
)
from core.store import artifacts
from core.training.ranks import Group
from core.training.warm import Warm

MIN_GAP_NATS = 0.3
"""Smallest difference of cross-entropy between forget set and target that leaves something to forget."""


def baseline_strength(config: TrialConfig, warm: Warm, group: Group, *, part: str) -> float:
    """The target model's extraction strength on a retain part, measured once and cached."""
    model, data = warm.model(config), warm.data(config)
    rows = data[f"retain_{part}"]

    def measure() -> dict[str, float]:
        meter = Meter(model, Group(rank=0, size=1), batch_size=config.batch.probe_batch_size)
        return {"value": meter.row_mean(forward_of(model.network), rows, "extraction_strength")}

    key = _key(model, {"retain": data.identity[f"retain_{part}"]}) | {"of": "extraction_strength"}
    found = group.agree(
        artifacts.record("baselines", key, measure)["value"] if group.is_first else None
    )
    return float(found)


def baseline_levels(config: TrialConfig, warm: Warm, group: Group, *, part: str) -> Levels:
    """Levels of all sets under the target model, and the target of forgetting; measured once and cached.

    ``target`` is the forget set's level under ``model.retain_only`` where there is one, else the
    approximate set's under the target model.

    Raises:
        ModelError: If a level is not finite.
        NothingToForgetError: If the forget set is not predicted clearly better than the target.
    """
    measured = group.agree(_baseline(config, warm, part) if group.is_first else None)
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


def _baseline(config: TrialConfig, warm: Warm, part: str) -> dict[str, float]:
    model, data = warm.model(config), warm.data(config)
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
        other = load_model(ModelConfig(source=source), config.engine, field="model.retain_only")
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
