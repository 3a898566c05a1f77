"""Initial factors of a trial's adapter: plain LoRA, principal (SVD), or Fisher-weighted (FILA, VILA).

Fisher information, importance and decomposition are artifacts: measured once for a model and data set,
and shared by all trials and runs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.config import FisherConfig, TrialConfig
from core.data.batches import collate
from core.data.tokens import TokenRow, TokenSplits
from core.errors import DataError
from core.fila import (
    normalise_rows,
    relative_floor,
    relative_importance,
    row_weights,
    weighted_low_rank,
)
from core.fisher import diagonal_fisher
from core.losses import nll_loss
from core.model.layers import dense_weight, oriented, resolve_targets
from core.model.loading import LoadedModel
from core.seeding import derive_seed
from core.store import artifacts
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.training.shared_work import decomposed_rank
from core.vila import centred_fisher, importance_map


def initial_factors(
    config: TrialConfig, model: LoadedModel, data: TokenSplits
) -> dict[str, InitialFactors]:
    """Factors A0, B0 of every target layer, float32 on the CPU; B0 is ``None`` (zero) for plain LoRA.

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
                a=_uniform((rank, dense_weight(layer).shape[1]), config.seed, name), b=None
            )
            for name, layer in layers.items()
        }
    factors = _decomposition(config, model, data, layers)
    root = math.sqrt(scaling)
    return {
        name: InitialFactors(
            a=factors[f"{name}.a"][:rank] / root, b=factors[f"{name}.b"][:, :rank] / root
        )
        for name in names
    }


def fisher_information(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Diagonal Fisher of the forget and retain rows for each layer: keys ``forget/NAME``, ``retain/NAME``."""
    forget, retain = _fisher_rows(config.fisher, data)

    def measure() -> dict[str, Tensor]:
        size = config.fisher.batch_size
        measured: dict[str, Tensor] = {}
        for part, rows in (("forget", forget), ("retain", retain)):
            fisher = diagonal_fisher(_weight_gradients(model, layers, rows, batch_size=size))
            measured |= {f"{part}/{name}": f for name, f in fisher.items()}
        return measured

    return artifacts.tensors("fisher", _fisher_key(config, model, data, layers), measure)


def lora_fisher(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Centred Fisher of a random adapter's factors: keys ``forget/NAME.a``, ``forget/NAME.b``, ``retain/...``.

    Measured at ``W x + s B A x`` with entries of A and B from N(0, sigma squared), the same for every
    trial. No gradient of W is taken: that is what VILA saves.

    Raises:
        DataError: If the rows of a part make fewer than two batches.
    """
    size = config.fisher.batch_size
    parts = dict(zip(("forget", "retain"), _fisher_rows(config.fisher, data), strict=True))
    for part, rows in parts.items():
        if len(rows) <= size:
            raise DataError(
                f"fisher.batch_size: vila measures a variance over batches and needs two of the {part} set, "
                f"got batch_size={size} for {len(rows)} rows; lower it, or raise fisher.rows"
            )

    def measure() -> dict[str, Tensor]:
        measured: dict[str, Tensor] = {}
        adapter = _random_adapter(config, model, layers)
        try:
            factors = {
                f"{name}.{side}": factor
                for name, *both in adapter.increments()
                for side, factor in zip("ab", both, strict=True)
            }
            for part, rows in parts.items():
                gradients = _gradients(model, factors, rows, batch_size=size)
                fisher = centred_fisher(gradients)
                measured |= {f"{part}/{name}": f for name, f in fisher.items()}
        finally:
            adapter.detach()
        return measured

    return artifacts.tensors("lora_fisher", _lora_fisher_key(config, model, data, layers), measure)


def _random_adapter(
    config: TrialConfig, model: LoadedModel, layers: Mapping[str, nn.Module]
) -> DifferenceAdapter:
    """An adapter whose increments are random and whose frozen factors are zero: W x + s dB dA x."""
    rank, sigma = config.fisher.lora_rank, config.fisher.lora_sigma
    adapter = DifferenceAdapter(
        model.network,
        {
            name: InitialFactors(a=torch.zeros(rank, dense_weight(layer).shape[1]), b=None)
            for name, layer in layers.items()
        },
        rank=rank,
        scaling=config.adapter.scaling,
        dtype=model.dtype,
    )
    for name, *both in adapter.increments():
        for side, factor in zip("ab", both, strict=True):
            generator = torch.Generator().manual_seed(derive_seed(0, "vila", name, side))
            factor.data.copy_(sigma * torch.randn(factor.shape, generator=generator))
    return adapter


def _decomposition(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    is_weighted = config.method.adapter_init != "svd" and config.fisher.exponent > 0.0
    rank = decomposed_rank(config.adapter.rank)
    key = {
        "model": model.identity,
        "dtype": str(model.dtype),
        "layers": list(layers),
        "rank": rank,
        "weights": _weights_key(config, model, data, layers) if is_weighted else None,
    }

    def decompose() -> dict[str, Tensor]:
        sums = _importance_sums(config, model, data, layers) if is_weighted else None
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
            made |= {f"{name}.a": factors.a, f"{name}.b": factors.b}
        return made

    return artifacts.tensors("factors", key, decompose)


def _importance_sums(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Row sums of the relative importance, ``(O,)`` for each layer: all that the weights need of Fisher."""
    fisher_config = config.fisher

    def measure() -> dict[str, Tensor]:
        sums = {}
        for name, forget, retain in _fisher_pairs(config, model, data, layers):
            floor = fisher_config.floor
            if fisher_config.floor_kind == "relative":
                floor = max(relative_floor(retain, floor), torch.finfo(torch.float32).tiny)
            sums[name] = relative_importance(forget, retain, floor=floor).sum(dim=1)
        return sums

    return artifacts.tensors("importance", _importance_key(config, model, data, layers), measure)


def _fisher_pairs(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, forget and retain Fisher ``(O, I)``; VILA's are put together one layer at a time: they are large."""
    if config.method.adapter_init == "fila":
        fisher = fisher_information(config, model, data, layers)
        for name in layers:
            yield name, fisher[f"forget/{name}"], fisher[f"retain/{name}"]
        return
    fisher = lora_fisher(config, model, data, layers)
    for name in layers:
        forget, retain = (
            importance_map(fisher[f"{part}/{name}.b"], fisher[f"{part}/{name}.a"])
            for part in ("forget", "retain")
        )
        yield name, forget, retain


def _fisher_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Any]:
    return {
        "model": model.identity,
        "dtype": str(model.dtype),
        "layers": list(layers),
        "forget": data.identity["forget"],
        "retain": data.identity["retain_train"],
        "rows": config.fisher.rows,
        "batch_size": config.fisher.batch_size,
    }


def _lora_fisher_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Any]:
    return _fisher_key(config, model, data, layers) | {
        "lora_rank": config.fisher.lora_rank,
        "lora_sigma": config.fisher.lora_sigma,
        "scaling": config.adapter.scaling,
    }


def _importance_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Any]:
    measured = _fisher_key if config.method.adapter_init == "fila" else _lora_fisher_key
    return measured(config, model, data, layers) | {
        "floor": config.fisher.floor,
        "floor_kind": config.fisher.floor_kind,
    }


def _weights_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Mapping[str, nn.Module]
) -> dict[str, Any]:
    return _importance_key(config, model, data, layers) | {
        "exponent": config.fisher.exponent,
        "normalise": config.fisher.normalise,
    }


def _fisher_rows(
    config: FisherConfig, data: TokenSplits
) -> tuple[Sequence[TokenRow], Sequence[TokenRow]]:
    forget = data["forget"][: config.rows]
    return forget, data["retain_train"][: len(forget)]


def _weight_gradients(
    model: LoadedModel,
    layers: Mapping[str, nn.Module],
    rows: Sequence[TokenRow],
    *,
    batch_size: int,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    weights = {name: cast(nn.Parameter, layer.weight) for name, layer in layers.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for gradients, n_counted in _gradients(model, weights, rows, batch_size=batch_size):
            yield {name: oriented(layers[name], g) for name, g in gradients.items()}, n_counted
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)


def _gradients(
    model: LoadedModel,
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[TokenRow],
    *,
    batch_size: int,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Gradient of each batch's mean cross-entropy, and its counted tokens; zeros for a layer not passed through."""
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], model.device)
        output = model.network(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        gradients = torch.autograd.grad(
            nll_loss(output.logits, batch.labels),
            list(parameters.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        yield dict(zip(parameters, gradients, strict=True)), batch.n_counted


def _uniform(shape: tuple[int, int], seed: int, name: str) -> Tensor:
    """PEFT's default for A: uniform within one over the square root of the inputs."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "adapter", name))
    bound = 1.0 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
