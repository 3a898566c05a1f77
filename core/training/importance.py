"""Row sums of the importance of weights for forgetting: all that a weighted initialisation reads of Fisher information.

Fisher information of the weights is as large as the model in float32, twice. So it is never kept: a few
layers are measured at a time, and what stays of them is one sum for each output row and floor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.config import FisherConfig, TrialConfig
from core.data.batches import collate
from core.data.tokens import TokenRow, TokenSplits
from core.errors import DataError
from core.fila import relative_floor, relative_importance
from core.fisher import diagonal_fisher, layer_groups
from core.losses import nll_loss
from core.model.layers import linear_shape, oriented
from core.model.loading import LoadedModel
from core.model.memory import free_bytes
from core.model.quantised import differentiable_weight
from core.seeding import derive_seed
from core.store import artifacts
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.vila import centred_fisher, importance_map

SHARE_OF_FREE_MEMORY = 0.5
"""What the sums of the layers measured at a time may take of the free memory; activations need the rest."""

_SUM_BYTES = 2 * 4  # forget and retain, float32
_WORK_BYTES = 3 * 4  # of one layer: a squared gradient, then the ratio and its denominator

Layers = Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True, order=True)
class Floor:
    """What is added to the retain Fisher before the division; see :class:`core.config.FisherConfig`."""

    kind: Literal["relative", "absolute"]
    value: float

    @classmethod
    def of(cls, config: FisherConfig) -> "Floor":
        """A trial's."""
        return cls(kind=config.floor_kind, value=config.floor)

    def absolute(self, fisher_retain: Tensor) -> float:
        """The number itself, for the retain Fisher of one matrix."""
        if self.kind == "absolute":
            return self.value
        return max(relative_floor(fisher_retain, self.value), torch.finfo(torch.float32).tiny)


def importance_sums(
    config: TrialConfig,
    model: LoadedModel,
    data: TokenSplits,
    layers: Layers,
    *,
    others: Sequence[TrialConfig] = (),
    budget: int | None = None,
) -> dict[str, Tensor]:
    """Row sums of the relative importance, float32 ``(O,)`` for each layer, measured once and cached.

    Args:
        config: The trial.
        model: The target model, with nothing attached.
        data: Rows.
        layers: The target layers.
        others: Trials whose floors are measured along, where they differ in nothing else: one measurement
            serves all floors of a sweep.
        budget: Bytes that the sums of the layers measured at a time may take on the model's device; half of
            what is free if absent. It changes the number of passes over the rows, not the result.
    """
    key = importance_key(config, model, data, layers)
    own = Floor.of(config.fisher)
    along = {Floor.of(other.fisher) for other in others if _is_measured_along(other, config)}
    floors = sorted(along - {own})

    def measure() -> dict[str, Tensor]:
        found = _measured_sums(config, model, data, layers, [own, *floors], budget)
        for floor in floors:
            made = partial(found.__getitem__, floor)
            artifacts.tensors("importance", key | _named(floor), made)
        return found[own]

    return artifacts.tensors("importance", key, measure)


def _measured_sums(
    config: TrialConfig,
    model: LoadedModel,
    data: TokenSplits,
    layers: Layers,
    floors: Sequence[Floor],
    budget: int | None,
) -> dict[Floor, dict[str, Tensor]]:
    sums: dict[Floor, dict[str, Tensor]] = {floor: {} for floor in floors}
    if config.method.adapter_init == "fila":
        pairs = _weight_fisher(config.fisher, model, data, layers, budget)
    else:
        pairs = _lora_maps(config, model, data, layers)
    for name, forget, retain in pairs:
        for floor in floors:
            importance = relative_importance(forget, retain, floor=floor.absolute(retain))
            sums[floor][name] = importance.sum(dim=1).cpu()
    return sums


def _weight_fisher(
    config: FisherConfig, model: LoadedModel, data: TokenSplits, layers: Layers, budget: int | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, diagonal Fisher of the forget and of the retain rows ``(O, I)`` of each layer, a few at a time."""
    sizes = {name: math.prod(linear_shape(layer)) for name, layer in layers.items()}
    if budget is None:
        budget = int(SHARE_OF_FREE_MEMORY * free_bytes(model.device))
    left = budget - _WORK_BYTES * max(sizes.values())
    for names in layer_groups(sizes, at_most=left // (_SUM_BYTES + model.dtype.itemsize)):
        group = {name: layers[name] for name in names}
        forget, retain = (
            diagonal_fisher(_weight_gradients(model, group, rows, batch_size=config.batch_size))
            for rows in _fisher_rows(config, data)
        )
        for name in names:
            yield name, forget.pop(name), retain.pop(name)


def _lora_maps(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Layers
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What stands for them in VILA, put together one layer at a time: the maps are large, the factors small."""
    fisher = lora_fisher(config, model, data, layers)
    for name in layers:
        forget, retain = (
            importance_map(fisher[f"{part}/{name}.b"], fisher[f"{part}/{name}.a"])
            for part in ("forget", "retain")
        )
        yield name, forget, retain


def lora_fisher(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Layers
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


def _random_adapter(config: TrialConfig, model: LoadedModel, layers: Layers) -> DifferenceAdapter:
    """An adapter whose increments are random and whose frozen factors are zero: W x + s dB dA x."""
    rank, sigma = config.fisher.lora_rank, config.fisher.lora_sigma
    adapter = DifferenceAdapter(
        model.network,
        {
            name: InitialFactors(a=torch.zeros(rank, linear_shape(layer)[1]), b=None)
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


def _fisher_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Layers
) -> dict[str, Any]:
    return {
        "model": model.identity,
        "dtype": model.precision,
        "layers": list(layers),
        "forget": data.identity["forget"],
        "retain": data.identity["retain_train"],
        "rows": config.fisher.rows,
        "batch_size": config.fisher.batch_size,
    }


def _lora_fisher_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Layers
) -> dict[str, Any]:
    return _fisher_key(config, model, data, layers) | {
        "lora_rank": config.fisher.lora_rank,
        "lora_sigma": config.fisher.lora_sigma,
        "scaling": config.adapter.scaling,
    }


def importance_key(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, layers: Layers
) -> dict[str, Any]:
    """What determines the row sums; it determines the row weights along with exponent and normalisation."""
    measured = _fisher_key if config.method.adapter_init == "fila" else _lora_fisher_key
    return measured(config, model, data, layers) | _named(Floor.of(config.fisher))


def _named(floor: Floor) -> dict[str, Any]:
    return {"floor": floor.value, "floor_kind": floor.kind}


def _is_measured_along(other: TrialConfig, config: TrialConfig) -> bool:
    """Whether the trials need the same Fisher information, be it with other floors."""
    free = {"exponent": 0.0, "floor": 1.0, "floor_kind": "absolute", "normalise": "none"}
    measured = [
        (
            trial.method.adapter_init,
            trial.adapter.targets,
            trial.adapter.layers,
            trial.adapter.scaling if trial.method.adapter_init == "vila" else None,
            trial.fisher.model_copy(update=free),
        )
        for trial in (other, config)
    ]
    return other.fisher.exponent > 0.0 and measured[0] == measured[1]


def _fisher_rows(
    config: FisherConfig, data: TokenSplits
) -> tuple[Sequence[TokenRow], Sequence[TokenRow]]:
    forget = data["forget"][: config.rows]
    return forget, data["retain_train"][: len(forget)]


def _weight_gradients(
    model: LoadedModel,
    layers: Layers,
    rows: Sequence[TokenRow],
    *,
    batch_size: int,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    with ExitStack() as differentiable:
        weights = {
            name: differentiable.enter_context(differentiable_weight(layer))
            for name, layer in layers.items()
        }
        for gradients, n_counted in _gradients(model, weights, rows, batch_size=batch_size):
            yield {name: oriented(layers[name], g) for name, g in gradients.items()}, n_counted


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
