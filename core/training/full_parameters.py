"""Full-parameter unlearning: every weight of a copy of the target model is trained."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from core.model.loading import LoadedModel, load_network, save_network
from core.store.durable import commit_folder
from core.training.trained import Gather


class FullParameters:
    """Trained weights of one trial; the target model itself stays as it is, and is the reference.

    Attributes:
        model: A model of the target's architecture; all its parameters are trained.
    """

    def __init__(self, target: LoadedModel, model: nn.Module) -> None:
        """Keep both; see :meth:`copied` and :meth:`loaded`."""
        self._target, self.model = target, model

    @classmethod
    def copied(cls, target: LoadedModel) -> "FullParameters":
        """A copy of the target model, to be trained."""
        return cls(target, copy.deepcopy(target.network).requires_grad_(True))

    @classmethod
    def loaded(cls, target: LoadedModel, folder: Path) -> "FullParameters":
        """A trained model from its folder, beside the target model that it was a copy of."""
        return cls(target, load_network(folder, target))

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The target model itself is still there."""
        yield self._target.network

    @contextmanager
    def tapped(self) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
        """No adapter adds anything."""
        yield {}

    def dropping(self, *number: int) -> AbstractContextManager[None]:
        """Nothing is dropped."""
        return nullcontext()

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Within the context the weights lie ``factor`` of the way from the target model to the trained ones."""
        before = dict(self._target.network.named_parameters())
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, trained in self.model.named_parameters():
                kept[name] = trained.detach().clone()
                trained.copy_(mixed_weight(before[name], kept[name], factor=factor))
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
            before = {n: w.detach().cpu() for n, w in self._target.network.named_parameters()}
            weights = mixed(before, weights, factor=factor)
        commit_folder(folder, lambda path: self.write(path, weights))

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a model folder with these weights."""
        save_network(self._target, weights, folder)

    def unmoved(self, gather: Gather) -> list[str]:
        """No adapted layers; rows of an embedding that no text names stay where they are."""
        return []

    def detach(self) -> None:
        """Let the copy go."""
        del self.model

    def initial_rms(self) -> tuple[float, float]:
        """No factors: zeros."""
        return 0.0, 0.0


def mixed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, factor: float
) -> dict[str, Tensor]:
    r"""Weights on the straight line from the original model to the unlearned one.

    .. math::
        \theta_c = \theta_0 + c \, (\theta - \theta_0)

    0 gives ``before`` and 1 gives ``after``, both bit for bit. For a low-rank adapter scale its
    difference instead, which is the same.

    Args:
        before: Name to float weight of the original model, any shape.
        after: Name to weight of the unlearned model: full effective weights, of the same names and shapes.
        factor: c in ``[0, 1]``, the share of the difference.

    Returns:
        Name to weight, of the dtype of ``before``; computed in at least float32.

    Raises:
        ValueError: If names or shapes disagree, or the factor lies outside ``[0, 1]``.

    References:
        Wang et al., ICLR 2025, ``data_module.py`` ``model_mix``. Deviation: its ``ratio`` weights the
        original model and is ``1 - factor``.
    """
    if not 0.0 <= factor <= 1.0:
        raise ValueError(f"factor must lie in [0, 1], got {factor}")
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"before and after must have the same names, only one has {', '.join(odd)}"
        )
    for name, start in before.items():
        if start.shape != after[name].shape:
            raise ValueError(
                f"{name}: before and after must have one shape, "
                f"got {tuple(start.shape)} and {tuple(after[name].shape)}"
            )
    return {n: mixed_weight(w, after[n], factor=factor) for n, w in before.items()}


def mixed_weight(before: Tensor, after: Tensor, *, factor: float) -> Tensor:
    """One weight of :func:`mixed`: computed in at least float32, of the dtype of ``before``."""
    wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    return torch.lerp(before.to(wide), after.to(wide), factor).to(before.dtype)


def is_model_folder(folder: Path) -> bool:
    """Whether a committed folder holds a whole model rather than an adapter."""
    return (folder / "config.json").is_file()
