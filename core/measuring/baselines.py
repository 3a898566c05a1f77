"""What the target model scores before unlearning, measured once and cached."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from core.config import ModelConfig, TrialConfig
from core.data.tokens import TokenRow
from core.errors import ModelError, NothingToForgetError
from core.measuring.meter import Meter
from core.measuring.scale import MIN_GAP_NATS
from core.metrics.intervals import Sums
from core.metrics.probes import Levels, degradation, level
from core.model.layers import vocabulary_size
from core.model.loading import LoadedModel, forward_of, load_model, retain_only_identity
from core.store import artifacts
from core.training.ranks import Group
from core.training.warm import Warm

MIN_GAP_ACCURACY = 0.05
"""Smallest difference of accuracy between forget set and target that ``accuracy_closure`` can be a share of."""


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
    """Levels of all sets under the target model, and the target of forgetting: of :func:`baseline_sums`."""
    sums = baseline_sums(config, warm, group, part=part)
    return {name: level(of_rows) for name, of_rows in sums.items()}


def baseline_sums(
    config: TrialConfig, warm: Warm, group: Group, *, part: str
) -> Mapping[str, Sums]:
    """Row sums of all sets under the target model; measured once and cached.

    ``target`` are the rows whose level forgetting aims at: the forget set's under ``model.retain_only``
    where there is one, else those of the whole approximate set, of its probe and its report part, under the
    target model. A level of all of them is a third less uncertain than of a half; the reporting split then
    has no target of its own. ``unseen`` are the approximate set's rows, under ``model.retain_only`` where there
    is one; without an approximate set the forget set's under that model, to which they are text of the same kind
    that it never saw.

    Raises:
        ModelError: If a level is not finite.
        NothingToForgetError: If the forget set is not predicted clearly better than the target, or
            something that the trial is judged by is not defined on these rows.
    """
    sums: Mapping[str, Sums] = group.agree(
        _baseline(config, warm, part) if group.is_first else None
    )
    levels = {name: level(of_rows) for name, of_rows in sums.items()}
    for name, at in levels.items():
        if not math.isfinite(at.nll):
            raise ModelError(
                f"model.source: the target model's cross-entropy on the {name} set is {at.nll} before "
                "unlearning; its weights are damaged, or engine.dtype is too small for them (try fp32)"
            )
    _refuse_nothing_to_forget(config, warm, levels)
    _refuse_undefined(config, levels, part)
    return sums


def _refuse_nothing_to_forget(config: TrialConfig, warm: Warm, levels: Levels) -> None:
    forget, target = levels["forget"], levels["target"]
    other = (
        "its own under model.retain_only" if config.model.retain_only else "the approximate set's"
    )
    advice = "choose text that the model has memorised" + (
        ""
        if config.model.retain_only
        else ", and an approximate set of the same kind that it has not"
    )
    if target.nll - forget.nll < MIN_GAP_NATS:
        raise NothingToForgetError(
            f"data.forget: there is nothing to forget: its cross-entropy {forget.nll:.3f} must lie at least "
            f"{MIN_GAP_NATS} nats below {other}, which is {target.nll:.3f}; "
            + "; ".join([advice, *warm.notices(config)])
        )
    gap = forget.accuracy - target.accuracy
    if config.selection.metric == "accuracy_closure" and gap < MIN_GAP_ACCURACY:
        raise NothingToForgetError(
            f"objective.metric: accuracy_closure has nothing to close: the forget set's accuracy "
            f"{forget.accuracy:.3f} must lie at least {MIN_GAP_ACCURACY} above {other}, which is "
            f"{target.accuracy:.3f}; {advice}, or maximise forget_closure"
        )


def _refuse_undefined(config: TrialConfig, levels: Levels, part: str) -> None:
    """Refuse limits on what the untouched model has no number for: no probe could keep them."""
    untouched = degradation(levels, levels)
    for metric in config.selection.limited_metrics:
        if math.isfinite(untouched.get(metric, math.nan)):
            continue
        if metric == "retain_forgetting":
            rule = (
                f"unseen text's cross-entropy {levels['unseen'].nll:.3f} must lie at least {MIN_GAP_NATS} nats above "
                f"the retain set's {levels['retain'].nll:.3f}; limit retain_drop instead, or let `auto` choose"
            )
        else:
            rule = (
                f"it is a share of the retain set's accuracy, which is {levels['retain'].accuracy:.3f}; "
                "limit retain_drop instead"
            )
        raise NothingToForgetError(
            f"constraints: {metric} is not defined on the {part} split: {rule}"
        )


def _baseline(config: TrialConfig, warm: Warm, part: str) -> dict[str, Sums]:
    model, data = warm.model(config), warm.data(config)
    parts: dict[str, tuple[str, ...]] = {"forget": ("forget",)}
    if config.data.approximate is not None:
        parts["approximate"] = ("approximate_probe", "approximate_report")
    parts |= {name: (f"{name}_{part}",) for name in ("retain", "general")}
    meter = Meter(model, Group(rank=0, size=1), batch_size=config.batch.probe_batch_size)

    def kept(of_parts: Sequence[str]) -> Sums:
        rows = [row for name in of_parts for row in data[name]]
        key = _key(model, {name: data.identity[name] for name in of_parts})
        return _kept(key, lambda: meter.row_sums(forward_of(model.network), rows))

    found = {name: kept(of_parts) for name, of_parts in parts.items()}
    source = config.model.retain_only
    if source is None:
        return found | dict.fromkeys(("target", "unseen"), found["approximate"])
    other = _RetainOnly(config, model)
    for name, role in rows_beside(config).items():
        rows = [row for of_part in parts[role] for row in data[of_part]]

        def measure_other(rows: Sequence[TokenRow] = rows) -> Sums:
            return meter.row_sums(forward_of(other.network), rows)

        key = _key(model, {of_part: data.identity[of_part] for of_part in parts[role]})
        found[name] = _kept(key | {"model": retain_only_identity(config.model)}, measure_other)
    return found


def rows_beside(config: TrialConfig) -> dict[str, str]:
    """Whose rows ``target`` and ``unseen`` are, which are measured before unlearning only."""
    unseen = "forget" if config.data.approximate is None else "approximate"
    return {"target": unseen if config.model.retain_only is None else "forget", "unseen": unseen}


class _RetainOnly:
    """The retain-only model, loaded when it is first asked for.

    Raises:
        ModelError: If it has another tokenizer than the target model.
    """

    def __init__(self, config: TrialConfig, model: LoadedModel) -> None:
        self._config, self._model = config, model

    @cached_property
    def network(self) -> nn.Module:
        source = self._config.model.retain_only
        assert source is not None
        own = self._config.model
        alike = ModelConfig(source=source, tokenizer=own.tokenizer, quantisation=own.quantisation)
        other = load_model(alike, self._config.engine, field="model.retain_only")
        sizes = [vocabulary_size(m.network) for m in (self._model, other)]
        if sizes[0] != sizes[1] or self._model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
            raise ModelError(
                f"model.retain_only: {source!r} has another tokenizer than model.source ({sizes[1]} and {sizes[0]} "
                "token ids); the two must be made from one model"
            )
        return other.network


def _kept(key: Mapping[str, Any], measure: Callable[[], Sums]) -> Sums:
    """Row sums from the cache, measured first if they are not there."""
    found = artifacts.tensors("baselines", key, lambda: {"sums": torch.from_numpy(measure())})
    sums: Sums = found["sums"].numpy()
    return sums


def _key(model: LoadedModel, rows: Mapping[str, str]) -> dict[str, Any]:
    return {**model.determinants, "rows": dict(rows)}
