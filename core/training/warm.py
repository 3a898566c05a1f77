"""What a process keeps warm from one trial to the next: the target model and the tokenised rows."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.config import TrialConfig
from core.data.splits import split_data
from core.data.taught import wording_notice
from core.data.tokens import TokenSplits, tokenise_splits
from core.errors import IntegrityError
from core.model.loading import LoadedModel, load_model, vocabulary_size, weights_checksum
from core.model.source import locate


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
            self._data[key] = tokenise_splits(
                split_data(config.data),
                config.data,
                model.tokenizer,
                vocabulary=vocabulary_size(model.network),
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
        return [] if notice is None else [notice]

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
