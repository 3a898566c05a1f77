"""Door to optuna: how much each searched field mattered, by Optuna's two evaluators, with intervals.

*fANOVA* answers: how much of the spread of all values comes from this field alone, averaged over the others.
*PED-ANOVA* answers: how much does this field decide whether a trial is among the better ones. A field that only matters
where the others are already good has little of the first and much of the second.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.config import Dimension
from tuning.copies import Shown, study_in_memory
from tuning.knobs import FEWEST, finished, worth
from tuning.records import TrialRecord

Kind = Literal["fanova", "ped_anova"]

MEANINGS: Final[Mapping[Kind, str]] = {
    "fanova": "how much of the spread of all values comes from this parameter alone",
    "ped_anova": "how much this parameter decides whether a trial is among the better ones",
}

_SAMPLES: Final = 40
_TREES: Final = 24
_QUANTILE: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An importance, and where its middle 90 % lies when trials are drawn again.

    Attributes:
        value: Share, from 0 to 1; those of all fields add up to 1.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Importance of each of the :func:`judged` fields, by evaluator, the largest first.

    Attributes:
        fanova: By fANOVA; see :data:`MEANINGS`.
        ped_anova: By PED-ANOVA.
        trials: Numbers of the trials that they rest on.
    """

    fanova: Mapping[str, Estimate]
    ped_anova: Mapping[str, Estimate]
    trials: tuple[int, ...]


def needed(n_fields: int) -> int:
    """Trials that say anything of so many fields: eight, and with more than two fields three for each and two more."""
    return max(FEWEST, 3 * n_fields + 2)


def judged(space: Mapping[str, Dimension], trials: Sequence[TrialRecord]) -> list[str]:
    """Fields whose importance can be told: every finished trial has them, and not all with one value."""
    left_out = not_judged(space, trials)
    return [name for name in space if name not in left_out]


def not_judged(space: Mapping[str, Dimension], trials: Sequence[TrialRecord]) -> dict[str, str]:
    """Why the importance of each of the other fields cannot be told, in words for brackets behind its name."""
    of = finished(trials)
    found = {}
    for name in space:
        values = [t.params[name] for t in of if name in t.params]
        if not values:
            found[name] = "no finished trial has it"
        elif len(values) < len(of):
            found[name] = f"only {len(values)} of {len(of)} finished trials have it"
        elif len(set(values)) < 2:
            found[name] = "the same in all of them"
    return found


def importances(
    space: Mapping[str, Dimension], trials: Sequence[TrialRecord]
) -> Importances | None:
    """How much each searched field mattered for the value of a trial.

    Values of trials that never kept every limit count as the worst feasible one. Intervals are percentiles (5 and 95)
    over 40 bootstrap samples of the trials.

    Args:
        space: Searched fields.
        trials: Trials of one sweep, or of several over the same fields.

    Returns:
        ``None`` if no field can be :func:`judged`, there are fewer trials than are :func:`needed` for those that can,
        or all are worth the same.

    References:
        Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014;
        Watanabe et al., "PED-ANOVA", IJCAI 2023. Both by Optuna.
    """
    of, names = finished(trials), judged(space, trials)
    if not names or len(of) < needed(len(names)) or len({worth(t) for t in of}) < 2:
        return None
    shown = [_shown(t, names, space) for t in of]
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(of), len(of)) for _ in range(_SAMPLES)]
    found: dict[Kind, dict[str, Estimate]] = {}
    for kind in MEANINGS:
        whole = _evaluated(kind, shown, names, seed=0)
        again = [
            _evaluated(kind, [shown[i] for i in draw], names, seed=seed)
            for seed, draw in enumerate(draws)
            if len({shown[i].value for i in draw}) > 1
        ]
        estimates = {}
        for name in sorted(names, key=lambda n: -whole[n]):
            low, high = np.quantile([one[name] for one in again], (0.05, 0.95))
            value = whole[name]
            estimates[name] = Estimate(value=value, low=min(low, value), high=max(high, value))
        found[kind] = estimates
    return Importances(
        fanova=found["fanova"],
        ped_anova=found["ped_anova"],
        trials=tuple(t.number for t in of),
    )


def _evaluated(
    kind: Kind, trials: Sequence[FrozenTrial], names: Sequence[str], *, seed: int
) -> dict[str, float]:
    evaluator: BaseImportanceEvaluator
    if kind == "fanova":
        evaluator = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=16, seed=seed)
    else:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=_QUANTILE, region_quantile=1.0)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        study = study_in_memory([Shown.of(t) for t in trials], direction="maximize")
        raw = evaluator.evaluate(study, params=list(names))
    finally:
        optuna.logging.set_verbosity(level)
    total = sum(raw.values())
    return {name: raw[name] / total if total > 0.0 else 1.0 / len(names) for name in names}


def _shown(trial: TrialRecord, names: Sequence[str], space: Mapping[str, Dimension]) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        value=worth(trial),
        params={name: trial.params[name] for name in names},
        distributions={name: _distribution(space[name]) for name in names},
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.categorical is not None:
        return CategoricalDistribution(dimension.categorical)
    if dimension.int_range is not None:
        i = dimension.int_range
        return IntDistribution(i.low, i.high, log=i.log, step=i.step)
    assert dimension.float_range is not None  # Dimension checks it
    f = dimension.float_range
    return FloatDistribution(f.low, f.high, log=f.log, step=f.step)
