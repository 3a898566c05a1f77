"""How sure a probe's numbers are: intervals by resampling rows, paired with the model before unlearning.

Plain numbers, no tensors. Shapes: N rows of a set, R replicates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.seeding import derive_seed

Values = NDArray[np.float64]
Sums = NDArray[np.float64]
"""``(N, 3)``, of each row of a set: summed negative log-likelihood (nats), correct greedy choices, counted tokens."""

Interval = tuple[float, float]
"""Lower and upper end."""

CONFIDENCE: Final = 0.95
N_REPLICATES: Final = 2000

_LARGEST_BLOCK: Final = 2**21
"""Row counts held at a time, 16 MiB, however many rows a set has."""


@dataclass(frozen=True, kw_only=True)
class _Levels:
    """A set's levels in each replicate, ``(R,)``: nats per token and share of tokens."""

    nll: Values
    accuracy: Values


_Replicated = Mapping[str, _Levels]

DIFFERENCES: Final[Mapping[str, Callable[[_Replicated, _Replicated], Values]]] = {
    "retain_drop": lambda now, before: now["retain"].nll - before["retain"].nll,
    "general_drop": lambda now, before: now["general"].nll - before["general"].nll,
    "retain_forgetting": lambda now, before: (
        (now["retain"].nll - before["retain"].nll) / (before["unseen"].nll - before["retain"].nll)
    ),
    "retain_accuracy_drop": lambda now, before: before["retain"].accuracy - now["retain"].accuracy,
    "general_accuracy_drop": lambda now, before: (
        before["general"].accuracy - now["general"].accuracy
    ),
    "retain_utility": lambda now, before: now["retain"].accuracy / before["retain"].accuracy,
    "accuracy_gap": lambda now, before: now["forget"].accuracy - before["target"].accuracy,
}
"""Metrics of :func:`~core.metrics.probes.degradation` that compare levels now with those before, replicate by
replicate."""

WORST_DAMAGE: Final = "worst_damage"
"""Name of the interval of the largest of some damages."""

DISTANCES: Final[Mapping[str, Callable[[_Replicated, _Replicated], Values]]] = {
    "forget_closure": lambda now, before: _share(
        now["forget"].nll - before["target"].nll, before["forget"].nll - before["target"].nll
    ),
    "accuracy_closure": lambda now, before: _share(
        now["forget"].accuracy - before["target"].accuracy,
        before["forget"].accuracy - before["target"].accuracy,
    ),
}
"""Signed distance to the target, in units of the way to it, of each closure: closure = 1 - abs(distance)."""


def intervals(
    now: Mapping[str, Sums],
    before: Mapping[str, Sums],
    *,
    rows_of: Mapping[str, str] = MappingProxyType(
        {"target": "approximate", "unseen": "approximate"}
    ),
    worst_of: Sequence[str] = (),
    n_replicates: int = N_REPLICATES,
    seed: int = 0,
) -> dict[str, Interval]:
    r"""95 % intervals of every closure and drop of a probe: percentiles over resampled rows.

    In each replicate the rows of every set are drawn anew with replacement, and each level is the ratio
    of sums that it is in a probe,

    .. math:: \ell^{(r)} = \frac{\sum_i w_i^{(r)} s_i}{\sum_i w_i^{(r)} n_i},

    with one draw :math:`w^{(r)}` of a set for the levels now and before: drops are paired, so that what
    makes a row easy or hard cancels. A closure takes rows of the forget set and of the target's set, each
    drawn on its own. Its interval is that of the signed distance to the target, folded: percentiles of the
    closure itself would lie below 1 for a model that is exactly at its target.

    The rows are taken for a sample of the texts that they stand for. Training them again, with another
    seed, spreads the numbers further.

    Args:
        now: Row sums of ``forget``, ``retain`` and ``general`` under the model being unlearned.
        before: The same under the target model; ``target``, rows whose level forgetting aims at; and
            ``unseen``, rows of the retain set's kind that the model never saw.
        rows_of: Set that the rows are of what is measured before only: ``target`` has those of the
            ``approximate`` set, or of ``forget`` where they are the forget set's under a retain-only model;
            ``unseen`` those of the ``approximate`` set, or where there is none of ``forget``, too.
            What has the same rows is drawn together.
        worst_of: Metrics of :data:`DIFFERENCES` whose largest damage has an interval, too, as
            :data:`WORST_DAMAGE`: in each replicate the largest, of ``retain_utility`` the fall below 1.
        n_replicates: R; the ends of an interval are its percentiles 2.5 and 97.5.
        seed: Of the draws. One seed draws the same rows at every probe of every trial, so that trials are
            compared on the same replicates.

    Returns:
        Lower and upper end by metric; closures clipped to [-1, 1]. A metric of rows that are not finite has
        none.

    Raises:
        ValueError: If rows now and before disagree in number.

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    rows = {name: {"now": now[name], "before": before[name]} for name in now}
    for name, owner in rows_of.items():
        rows.setdefault(owner, {})[name] = before[name]
    levels = {
        name: _resampled(sums, seed=derive_seed(seed, "rows", name), n_replicates=n_replicates)
        for name, sums in rows.items()
    }
    return _found(
        {name: levels[name]["now"] for name in now},
        {name: levels[name]["before"] for name in now}
        | {name: levels[owner][name] for name, owner in rows_of.items()},
        worst_of,
    )


def _found(now: _Replicated, before: _Replicated, worst_of: Sequence[str]) -> dict[str, Interval]:
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {name: of(now, before) for name, of in DIFFERENCES.items()}
        if worst_of:
            damages = [1.0 - values[m] if m == "retain_utility" else values[m] for m in worst_of]
            values[WORST_DAMAGE] = np.max(damages, axis=0)
        found = {name: _percentiles(of_all) for name, of_all in values.items()}
        distances = {name: _percentiles(of(now, before)) for name, of in DISTANCES.items()}
    found = {name: ends for name, ends in found.items() if np.isfinite(ends).all()}
    return found | {n: _closure(ends) for n, ends in distances.items() if not np.isnan(ends).any()}


def _share(way: Values, gap: Values) -> Values:
    """``way / abs(gap)``; infinite where a draw has no gap: it says nothing about how far it is."""
    return np.where(gap == 0.0, np.inf, way / np.abs(gap))


def _closure(distance: Interval) -> Interval:
    """Ends of ``1 - abs(distance)`` over an interval of the signed distance."""
    low, high = distance
    nearest = 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
    furthest = max(abs(low), abs(high))
    return max(-1.0, 1.0 - furthest), max(-1.0, 1.0 - nearest)


def _percentiles(values: Values) -> Interval:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], method="nearest")
    return float(low), float(high)


def _resampled(sums: Mapping[str, Sums], *, seed: int, n_replicates: int) -> dict[str, _Levels]:
    """Levels of some measurements of the same rows in each replicate."""
    n_rows = {len(s) for s in sums.values()}
    if len(n_rows) != 1:
        raise ValueError(f"rows now and before must be the same, got {sorted(n_rows)} rows")
    side_by_side = np.concatenate(list(sums.values()), axis=1)
    draws = _draws(n_rows.pop(), seed=seed, n_replicates=n_replicates)
    with np.errstate(invalid="ignore"):  # a row that diverged
        totals = np.concatenate([counts @ side_by_side for counts in draws])
    found = {}
    for i, name in enumerate(sums):
        nll, correct, count = totals[:, 3 * i : 3 * i + 3].T
        found[name] = _Levels(nll=nll / count, accuracy=correct / count)
    return found


def _draws(n_rows: int, *, seed: int, n_replicates: int) -> Iterator[Values]:
    """How often each row is drawn, ``(R', N)`` in blocks of replicates."""
    draws = np.random.default_rng(seed)
    at_once = max(1, _LARGEST_BLOCK // n_rows)
    for begun in range(0, n_replicates, at_once):
        size = min(at_once, n_replicates - begun)
        picked = draws.integers(n_rows, size=(size, n_rows))
        picked += n_rows * np.arange(size)[:, None]
        counts = np.bincount(picked.ravel(), minlength=size * n_rows)
        yield counts.reshape(size, n_rows).astype(np.float64)
