"""Initial factors of a trial's adapter: plain LoRA, principal (SVD), or Fisher-weighted (FILA, VILA).

Importance and decomposition are artifacts: measured once for a model and data set, and shared by all trials
and runs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.config import TrialConfig
from core.data.tokens import TokenSplits
from core.fila import normalise_rows, row_weights, weighted_low_rank
from core.model.layers import dense_weight, linear_shape, resolve_targets
from core.model.loading import LoadedModel
from core.seeding import derive_seed
from core.store import artifacts
from core.training.adapter import InitialFactors
from core.training.importance import importance_key, importance_sums
from core.training.shared_work import decomposed_rank


def initial_factors(
    config: TrialConfig,
    model: LoadedModel,
    data: TokenSplits,
    *,
    others: Sequence[TrialConfig] = (),
) -> dict[str, InitialFactors]:
    """Factors A0, B0 of every target layer, float32 on the CPU; B0 is ``None`` (zero) for plain LoRA.

    Args:
        config: The trial.
        model: The target model, with nothing attached.
        data: Rows.
        others: Trials that will ask, too; see :func:`core.training.importance.importance_sums`.

    Raises:
        ModelError: If no layer matches the targets, a block does not exist, or the rank does not fit.
        DataError: If VILA has fewer than two batches to measure on.
    """
    assert config.adapter.kind == "lora"  # full-parameter trials have no factors
    rank, scaling = config.adapter.rank, config.adapter.scaling
    names = resolve_targets(
        model.network, config.adapter.targets, rank=rank, layers=config.adapter.layers
    )
    layers = {name: model.network.get_submodule(name) for name in names}
    if config.method.adapter_init == "lora":
        return {
            name: InitialFactors(
                a=_uniform((rank, linear_shape(layer)[1]), config.seed, name), b=None
            )
            for name, layer in layers.items()
        }
    factors = _decomposition(config, model, data, layers, others)
    root = math.sqrt(scaling)
    return {
        name: InitialFactors(
            a=factors[f"{name}.a"][:rank] / root, b=factors[f"{name}.b"][:, :rank] / root
        )
        for name in names
    }


def _decomposition(
    config: TrialConfig,
    model: LoadedModel,
    data: TokenSplits,
    layers: Mapping[str, nn.Module],
    others: Sequence[TrialConfig],
) -> dict[str, Tensor]:
    is_weighted = config.method.adapter_init != "svd" and config.fisher.exponent > 0.0
    rank = decomposed_rank(config.adapter.rank)
    key = {
        "model": model.identity,
        "dtype": model.precision,
        "layers": list(layers),
        "rank": rank,
        "weights": _weights_key(config, model, data, layers) if is_weighted else None,
    }

    def decompose() -> dict[str, Tensor]:
        sums = None
        if is_weighted:
            sums = importance_sums(config, model, data, layers, others=others)
        made: dict[str, Tensor] = {}
        for name, layer in layers.items():
            weight = dense_weight(layer)
            if sums is None:
                rho = torch.ones(len(weight), device=weight.device)
            else:
                rho = row_weights(sums[name].to(weight.device), exponent=config.fisher.exponent)
                if config.fisher.normalise == "geometric_mean":
                    rho = normalise_rows(rho)
            factors = weighted_low_rank(
                weight,
                rho,
                rank=min(rank, *weight.shape),
                scaling=1.0,
                seed=derive_seed(0, "decomposition", name),
            )
            made |= {f"{name}.a": factors.a.cpu(), f"{name}.b": factors.b.cpu()}
        return made

    return artifacts.tensors("factors", key, decompose)


def _weights_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Any]:
    return importance_key(config, model, data, layers) | {
        "exponent": config.fisher.exponent,
        "normalise": config.fisher.normalise,
    }


def _uniform(shape: tuple[int, int], seed: int, name: str) -> Tensor:
    """PEFT's default for A: uniform within one over the square root of the inputs."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "adapter", name))
    bound = 1.0 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
