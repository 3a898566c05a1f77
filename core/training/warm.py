"""What a process keeps warm from one trial to the next: the target model and the tokenised rows."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.config import TrialConfig
from core.data.splits import split_data
from core.data.taught import wording_notice
from core.data.tokens import TokenSplits
from core.errors import IntegrityError
from core.model.layers import coverage, resolve_targets
from core.model.loading import LoadedModel, load_model, vocabulary_size, weights_checksum
from core.model.source import locate

COVERED_SHARE = 0.9
"""Share of a target group's weights below which a person is told that the adapter covers less."""


@dataclass
class Warm:
    """The target model and the tokenised rows, loaded when they are first asked for."""

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
            model = self.model(config)
            self._data[key] = split_data(
                config.data, model.tokenizer, vocabulary=vocabulary_size(model.network)
            )
        return self._data[key]

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
            "linear layers: what they hold is unlearned through the layers that do"
        )

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
