"""Attach what a trial trains to its model, with the same initial factors on every rank."""

import torch
from torch import nn

from core.config import TrialConfig
from core.data.tokens import TokenSplits
from core.model.loading import LoadedModel
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.training.dropout import InputDropout
from core.training.full_parameters import FullParameters
from core.training.initialisation import initial_factors
from core.training.ranks import Group
from core.training.trained import Trained


def attach(
    config: TrialConfig,
    model: LoadedModel,
    data: TokenSplits,
    group: Group,
    *,
    network: nn.Module,
) -> Trained:
    """Make what is trained: an adapter on the target model, or a copy of it.

    Args:
        config: The trial.
        model: The target model, or its outline.
        data: Rows.
        group: Ranks of the trial.
        network: The target model's network, which may be partitioned; an adapter sits on it.
    """
    if config.adapter.kind == "full":
        return FullParameters.copied(model)
    return DifferenceAdapter(
        network,
        agreed_factors(config, model, data, group),
        rank=config.adapter.rank,
        scaling=config.adapter.scaling,
        dtype=model.dtype,
        dropout=InputDropout(config.adapter.dropout, seed=config.seed),
    )


def agreed_factors(
    config: TrialConfig, model: LoadedModel, data: TokenSplits, group: Group
) -> dict[str, InitialFactors]:
    """The first rank's factors on every rank, bit for bit; only the first computes them."""
    made = initial_factors(config, model, data) if group.is_first else {}
    shapes = group.agree(
        {n: (f.a.shape, None if f.b is None else f.b.shape) for n, f in made.items()}
    )
    agreed = {}
    for name, (shape_a, shape_b) in shapes.items():
        mine = made.get(name)
        a = (mine.a if mine else torch.empty(shape_a)).to(model.device)
        b = None
        if shape_b is not None:
            b = (mine.b if mine and mine.b is not None else torch.empty(shape_b)).to(model.device)
        group.share([a] if b is None else [a, b])
        agreed[name] = InitialFactors(a=a, b=b)
    return agreed
