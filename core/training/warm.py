"""What a process keeps warm from one trial to the next: the target model and the tokenised rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from core.config import EngineConfig, ModelConfig, TrialConfig
from core.data.splits import split_data
from core.data.taught import wording_notice
from core.data.tokens import TokenSplits
from core.errors import IntegrityError
from core.model.layers import coverage, n_positions, resolve_targets, vocabulary_size
from core.model.loading import (
    LoadedModel,
    load_model,
    load_outline,
    load_partitioned,
    parts_of,
    resolve_dtype,
    weights_checksum,
)
from core.model.source import locate
from core.store.artifacts import content_key
from core.training.ranks import zero_options

COVERED_SHARE = 0.9
"""Share of a target group's weights below which a person is told that the adapter covers less."""


@dataclass
class Warm:
    """The target model and the tokenised rows, loaded when they are first asked for."""

    load: Callable[[ModelConfig, EngineConfig], LoadedModel] = load_model
    _models: dict[Any, LoadedModel] = field(default_factory=dict)
    _partitioned: dict[Any, nn.Module] = field(default_factory=dict)
    _weights: dict[str, Tensor] = field(default_factory=dict)
    _checksum: str = ""
    _data: dict[Any, TokenSplits] = field(default_factory=dict)

    def model(self, config: TrialConfig) -> LoadedModel:
        """The target model, loaded at the first call."""
        key = (config.model, config.engine.dtype, config.engine.device)
        if key not in self._models:
            self._models.clear()
            self._models[key] = self.load(config.model, config.engine)
            if self.load is load_model:
                self._watch(dict(self._models[key].network.named_parameters()))
        return self._models[key]

    @cached_property
    def outlined(self) -> "Warm":
        """The same for the outline of the model: what can be done without its weights."""
        return Warm(load=load_outline)

    def network(self, config: TrialConfig) -> nn.Module:
        """The network that an adapter sits on: the target model's, of which each rank holds a part under ZeRO 3.

        It is loaded at the first call; under ZeRO 3 every rank takes part.
        """
        if config.partitions != "base":
            return self.model(config).network
        engine = config.engine
        key = (config.model, engine.dtype, engine.device, engine.offload)
        if key not in self._partitioned:
            self._partitioned.clear()
            dtype = resolve_dtype(engine)
            network = load_partitioned(config.model, dtype, zero_options(engine))
            self._partitioned[key] = network
            self._watch(parts_of(network))
        return self._partitioned[key]

    def data(self, config: TrialConfig) -> TokenSplits:
        """The tokenised splits, read at the first call."""
        key = (config.model, config.data)
        if key not in self._data:
            model = self.model(config)
            self._data[key] = split_data(
                config.data,
                model.tokenizer,
                vocabulary=vocabulary_size(model.network),
                positions=n_positions(model.network),
            )
        return self._data[key]

    def fingerprint(self, config: TrialConfig) -> dict[str, str]:
        """What a trial's course follows from beside its configuration, by name: its rows, and how it computes."""
        model, data = self.model(config), self.data(config)
        others = [row.alternative for row in data.forget_rows]
        return {
            "data": content_key({"parts": data.identity, "alternatives": others}),
            "device or precision": f"{model.device.type} {model.dtype}",
        }

    def notices(self, config: TrialConfig) -> list[str]:
        """What a person should know of model and data, and what stops nothing."""
        rows = (row for part in self.data(config).parts.values() for row in part)
        notice = wording_notice(
            config.data,
            self.model(config).tokenizer,
            rows,
            source=config.model.source,
            location=locate(config.model)[0],
        )
        found = [notice, self._uncovered(config)]
        return [text for text in found if text is not None]

    def _uncovered(self, config: TrialConfig) -> str | None:
        """What is to be said where much of what the targets mean carries no adapter."""
        adapter, network = config.adapter, self.model(config).network
        if adapter.kind != "lora":
            return None
        targets = resolve_targets(network, adapter.targets, rank=1)
        found = coverage(network, adapter.targets, targets)
        if found.share >= COVERED_SHARE:
            return None
        return (
            f"adapter.targets: {adapter.targets} covers {found.share:.0%} of these weights in "
            f"{type(network).__name__}; {', '.join(found.left_out[:3])} carry no adapter, because they are no "
            "linear layers, or none that stock PEFT finds: what they hold is unlearned through the layers that do"
        )

    @property
    def checksum(self) -> str:
        """Checksum of the base weights on this rank when they were loaded; each trial verifies it when it ends."""
        return self._checksum

    def verify(self) -> None:
        """Compare the base weights on this rank with what was loaded, also while an adapter sits on them.

        Raises:
            IntegrityError: If they changed.
        """
        if weights_checksum(self._weights) != self._checksum:
            raise IntegrityError("the base model's weights changed during a trial")

    def _watch(self, weights: dict[str, Tensor]) -> None:
        self._weights, self._checksum = weights, weights_checksum(weights)
