"""Door to optuna: the samplers of a sweep, and what they propose.

A new sampler is an id in :class:`tuning.config.SamplerSpec` and an entry of :data:`SAMPLERS`; tests go over both.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import Trial, TrialState

from core.seeding import derive_seed
from tuning.config import Choice, Dimension, SamplerName, SamplerSpec, SweepSpec
from tuning.points import values_of
from tuning.space import is_active, ordered_dimensions

MANY = 100
"""Trials from which on ``auto`` asks TPE: a proposal of a Gaussian process costs the cube of their number."""


@dataclass(frozen=True, kw_only=True)
class SamplerKind:
    """What a sampler's id stands for.

    Attributes:
        make: Makes it for a sweep, with the seed of one proposal.
        has_model: Whether it fits a model to the trials so far, from ``n_startup_trials`` of them on.
        reads_pruned: Whether its model reads PRUNED trials and their constraints. One that does not is shown
            them as COMPLETE with their penalised values, so that it learns the boundary, too.
        spreads_startup: Whether its startup trials are evenly spread (quasi-Monte Carlo), not drawn.
    """

    make: Callable[[SweepSpec, int], optuna.samplers.BaseSampler]
    has_model: bool = False
    reads_pruned: bool = True
    spreads_startup: bool = False


def make_sampler(spec: SweepSpec, *, number: int, again: int = 0) -> optuna.samplers.BaseSampler:
    """The sweep's sampler for the trial of this number.

    Samplers that draw are seeded by trial, so that a restart does not propose the same points again;
    grid and quasi-Monte Carlo keep one seed and continue through the study.

    Args:
        spec: The sweep.
        number: Number of the trial.
        again: How often the sampler has proposed for this trial what was tried before.
    """
    purpose = ("sampler", number, again) if again else ("sampler", number)
    drawn = derive_seed(spec.sampler.seed, *purpose)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        kind = kind_of(spec, number=number)
        if kind.spreads_startup and number < spec.sampler.n_startup_trials and not again:
            return _qmc(spec, drawn)
        return kind.make(spec, drawn)


def kind_of(spec: SweepSpec, *, number: int) -> SamplerKind:
    """What the sweep's sampler is for the trial of this number.

    ``auto`` is a Gaussian process where every trial has every dimension, and TPE in a conditional space or where there
    are :data:`MANY` trials: ``docs/search.md`` has the measurements.
    """
    if spec.sampler.name == "auto" and (_is_conditional(spec) or number >= MANY):
        return _AUTO_TPE
    return SAMPLERS[spec.sampler.name]


def _is_conditional(spec: SweepSpec) -> bool:
    return any(dimension.when for dimension in spec.space.values())


def propose(trial: Trial, spec: SweepSpec) -> dict[str, Choice]:
    """The parameters of a trial: a value for each dimension whose conditions hold."""
    proposal: dict[str, Choice] = {}
    for name, dimension in ordered_dimensions(spec).items():
        if is_active(dimension, proposal):
            proposal[name] = suggest(trial, name, dimension)
    return proposal


def distribution_of(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """The distribution that :func:`suggest` records of a dimension."""
    if dimension.categorical is not None:
        return optuna.distributions.CategoricalDistribution(list(dimension.categorical))
    if dimension.int_range is not None:
        i = dimension.int_range
        return optuna.distributions.IntDistribution(i.low, i.high, log=i.log, step=i.step)
    assert dimension.float_range is not None  # Dimension checks it
    f = dimension.float_range
    return optuna.distributions.FloatDistribution(f.low, f.high, log=f.log, step=f.step)


def suggest(trial: Trial, name: str, dimension: Dimension) -> Choice:
    """A value for a dimension, from the trial's study."""
    if dimension.categorical is not None:
        return cast(Choice, trial.suggest_categorical(name, list(dimension.categorical)))
    if dimension.int_range is not None:
        i = dimension.int_range
        return trial.suggest_int(name, i.low, i.high, log=i.log, step=i.step)
    assert dimension.float_range is not None  # Dimension checks it
    f = dimension.float_range
    return trial.suggest_float(name, f.low, f.high, log=f.log, step=f.step)


def is_fitted(sampler: SamplerSpec, study: optuna.Study) -> bool:
    """Whether the next proposal comes from a model of the trials so far, not from chance or a list."""
    if not SAMPLERS[sampler.name].has_model:
        return False
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return len(ended) >= sampler.n_startup_trials


def _tpe(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=spec.sampler.n_startup_trials,
        multivariate=True,
        group=_is_conditional(spec),
        constant_liar=True,
    )


def _random(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _gp(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=spec.sampler.n_startup_trials)


def _nsga2(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=spec.sampler.n_startup_trials)


def _qmc(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.QMCSampler(
        seed=spec.sampler.seed,
        scramble=True,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),  # for conditional fields
    )


def _grid(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    choices = {name: list(values_of(dimension)) for name, dimension in spec.space.items()}
    return optuna.samplers.GridSampler(choices, seed=spec.sampler.seed)


SAMPLERS: Mapping[SamplerName, SamplerKind] = {
    "auto": SamplerKind(make=_gp, has_model=True, reads_pruned=False, spreads_startup=True),
    "tpe": SamplerKind(make=_tpe, has_model=True),
    "random": SamplerKind(make=_random),
    "grid": SamplerKind(make=_grid),
    "qmc": SamplerKind(make=_qmc),
    "gp": SamplerKind(make=_gp, has_model=True, reads_pruned=False),
    "nsga2": SamplerKind(make=_nsga2, has_model=True, reads_pruned=False),
}
"""Every sampler of a sweep file, by its id; ``auto`` as long as it is a Gaussian process."""

_AUTO_TPE = replace(SAMPLERS["tpe"], spreads_startup=True)
