"""Door to optuna: the samplers of a sweep, and what they propose.

A new sampler is an id in :class:`tuning.config.SamplerSpec` and an entry of :data:`SAMPLERS`; tests go over both.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import Trial, TrialState

from core.seeding import derive_seed
from tuning.config import Choice, Dimension, SamplerName, SamplerSpec, SweepSpec
from tuning.space import is_active, ordered_dimensions


@dataclass(frozen=True, kw_only=True)
class SamplerKind:
    """What a sampler's id stands for.

    Attributes:
        make: Makes it for a sweep, with the seed of one trial.
        fitted_to: States of the trials that its model is fitted to, from ``n_startup_trials`` of them on; none
            if it has no model.
        n_points: Counts the points that it can propose for a sweep; ``None`` if it never ends.
    """

    make: Callable[[SweepSpec, int], optuna.samplers.BaseSampler]
    fitted_to: tuple[TrialState, ...] = ()
    n_points: Callable[[SweepSpec], int] | None = None


def make_sampler(spec: SweepSpec, *, number: int) -> optuna.samplers.BaseSampler:
    """The sweep's sampler for the trial of this number.

    Samplers that draw are seeded by trial, so that a restart does not propose the same points again;
    grid and quasi-Monte Carlo keep one seed and continue through the study.
    """
    drawn = derive_seed(spec.sampler.seed, "sampler", number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[spec.sampler.name].make(spec, drawn)


def propose(trial: Trial, spec: SweepSpec) -> dict[str, Choice]:
    """The parameters of a trial: a value for each dimension whose conditions hold."""
    proposal: dict[str, Choice] = {}
    for name, dimension in ordered_dimensions(spec).items():
        if is_active(dimension, proposal):
            proposal[name] = suggest(trial, name, dimension)
    return proposal


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
    states = SAMPLERS[sampler.name].fitted_to
    if not states:
        return False
    return len(study.get_trials(deepcopy=False, states=states)) >= sampler.n_startup_trials


def n_points(spec: SweepSpec) -> int | None:
    """Points that the sweep's sampler can propose; ``None`` if it never ends."""
    count = SAMPLERS[spec.sampler.name].n_points
    return None if count is None else count(spec)


def _tpe(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=spec.sampler.n_startup_trials,
        multivariate=True,
        group=any(d.when for d in spec.space.values()),
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


class _Grid(optuna.samplers.GridSampler):
    """A grid under ask and tell: the end of the grid is the sweep's business, not ``Study.stop``'s."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do not stop the study."""


def _on_grid(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return _Grid(_grid(spec), seed=spec.sampler.seed)


def _n_grid_points(spec: SweepSpec) -> int:
    return math.prod(len(choices) for choices in _grid(spec).values())


def _grid(spec: SweepSpec) -> dict[str, list[Choice]]:
    return {name: _grid_values(dimension) for name, dimension in spec.space.items()}


def _grid_values(dimension: Dimension) -> list[Choice]:
    if dimension.categorical is not None:
        return list(dimension.categorical)
    range_ = dimension.float_range or dimension.int_range
    assert range_ is not None and range_.step is not None  # SweepSpec checks it
    count = int((range_.high - range_.low) / range_.step + 1e-9) + 1
    return [min(range_.high, range_.low + i * range_.step) for i in range(count)]  # 3 * 0.1 > 0.3


SAMPLERS: Mapping[SamplerName, SamplerKind] = {
    "tpe": SamplerKind(make=_tpe, fitted_to=(TrialState.COMPLETE, TrialState.PRUNED)),
    "random": SamplerKind(make=_random),
    "grid": SamplerKind(make=_on_grid, n_points=_n_grid_points),
    "qmc": SamplerKind(make=_qmc),
    "gp": SamplerKind(make=_gp, fitted_to=(TrialState.COMPLETE,)),
    "nsga2": SamplerKind(make=_nsga2, fitted_to=(TrialState.COMPLETE, TrialState.PRUNED)),
}
"""Every sampler of a sweep file, by its id."""
