"""Full-parameter unlearning: every weight of a copy of the target model is trained."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from core.model.loading import LoadedModel, load_network, save_network
from core.store.durable import commit_folder
from core.training.adapter import Gather


class FullParameters:
    """The trained copy of one trial; the target model itself stays as it is, and is the reference.

    Attributes:
        model: The copy; all its parameters are trained.
    """

    def __init__(self, target: LoadedModel) -> None:
        """Copy the target model."""
        self._target = target
        self.model: nn.Module = copy.deepcopy(target.network).requires_grad_(True)

    @classmethod
    def loaded(cls, target: LoadedModel, folder: Path) -> "FullParameters":
        """A trained model from its folder, beside the target model that it was a copy of."""
        found = cls.__new__(cls)
        found._target = target
        found.model = load_network(folder, target)
        return found

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Within the context the weights lie ``factor`` of the way from the target model to the trained ones."""
        before = dict(self._target.network.named_parameters())
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, trained in self.model.named_parameters():
                kept[name] = trained.detach().clone()
                trained.copy_(torch.lerp(before[name].float(), kept[name].float(), factor))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, trained in self.model.named_parameters():
                    trained.copy_(kept[name])

    def exported(self, gather: Gather) -> dict[str, Tensor]:
        """All weights in the target model's precision, on the CPU."""
        return {
            name: gather(parameter).to(self._target.dtype)
            for name, parameter in self.model.named_parameters()
        }

    def save(
        self, folder: Path, tensors: Mapping[str, Tensor], *, base: str, factor: float = 1.0
    ) -> None:
        """Commit a model folder, its distance from the target model scaled by ``factor``."""
        weights = dict(tensors)
        if factor != 1.0:
            before = dict(self._target.network.named_parameters())
            weights = {
                name: torch.lerp(before[name].float().cpu(), w.float(), factor).to(w.dtype)
                for name, w in weights.items()
            }
        commit_folder(folder, lambda path: self.write(path, weights))

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a model folder with these weights."""
        save_network(self._target, weights, folder)

    def detach(self) -> None:
        """Let the copy go."""
        del self.model

    def initial_rms(self) -> tuple[float, float]:
        """No factors: zeros."""
        return 0.0, 0.0


def is_model_folder(folder: Path) -> bool:
    """Whether a committed folder holds a whole model rather than an adapter."""
    return (folder / "config.json").is_file()
