"""Surrogates of unlearning trials: a function fitted to logged trials that stands in for training.

Two kinds, because a surrogate favours samplers that think as it does: a Gaussian process is smooth, a forest is
made of steps. What holds under both is no artefact of either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import spearmanr

Array = NDArray[np.float64]

_TREES = 40
_SMALLEST_LEAF = 2


class Surrogate(Protocol):
    """A fitted function of points in the unit cube."""

    @property
    def held_out(self) -> Array:
        """For each logged trial, what is predicted of it without it."""

    def __call__(self, points: Array) -> Array:
        """Values at ``(n, d)`` points."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well a surrogate predicts trials that it was not fitted to.

    Attributes:
        r2: Share of the variance of the logged values that the held-out predictions explain.
        spearman: Rank correlation of both.
    """

    r2: float
    spearman: float


def quality(values: Array, surrogate: Surrogate) -> Quality:
    """Held-out predictions against the logged values."""
    predicted = surrogate.held_out
    spread = float(np.sum((values - values.mean()) ** 2))
    if spread == 0.0 or float(np.ptp(predicted)) == 0.0:
        return Quality(r2=0.0, spearman=0.0)
    r2 = 1.0 - float(np.sum((values - predicted) ** 2)) / spread
    return Quality(r2=r2, spearman=float(spearmanr(values, predicted).statistic))


class GaussianProcess:
    r"""Matérn-5/2 with a length scale for each dimension, fitted by its marginal likelihood.

    Weak log-normal priors keep scales from 0 and infinity: :math:`\ell` around 0.5, noise variance around 0.03
    of the values' own. ``noise`` is the fitted standard deviation of a repeated trial, in the values' unit.
    """

    def __init__(self, points: Array, values: Array) -> None:
        self._points = points
        self._mean, self._scale = float(values.mean()), max(float(values.std()), 1e-9)
        self._targets = (values - self._mean) / self._scale
        n_dims = points.shape[1]
        best = None
        for start in (0.2, 0.7):
            guess = np.log(np.r_[np.full(n_dims, start), 1.0, 0.05])
            found = minimize(
                self._loss, guess, method="L-BFGS-B", bounds=[(-5.0, 3.0)] * len(guess)
            )
            best = found if best is None or found.fun < best.fun else best
        assert best is not None
        self._theta: Array = best.x
        covariance = self._covariance(points, self._theta)
        covariance += np.exp(self._theta[-1]) * np.eye(len(points))
        inverse = np.linalg.inv(covariance)
        self._weights = inverse @ self._targets
        left_out = self._targets - self._weights / np.diag(inverse)
        self.held_out: Array = left_out * self._scale + self._mean
        self.noise = float(np.exp(self._theta[-1] / 2.0)) * self._scale

    def __call__(self, points: Array) -> Array:
        predicted: Array = self._covariance(points, self._theta) @ self._weights
        return predicted * self._scale + self._mean

    def _covariance(self, points: Array, theta: Array) -> Array:
        scales = np.exp(theta[:-2])
        apart = (points[:, None, :] - self._points[None, :, :]) / scales
        distance = np.sqrt(5.0 * np.sum(apart**2, axis=-1))
        decayed: Array = (
            np.exp(theta[-2]) * (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
        )
        return decayed

    def _loss(self, theta: Array) -> float:
        covariance = self._covariance(self._points, theta)
        covariance += (np.exp(theta[-1]) + 1e-8) * np.eye(len(self._points))
        lower = np.linalg.cholesky(covariance)
        solved = np.linalg.solve(lower, self._targets)
        prior = np.sum((theta[:-2] - np.log(0.5)) ** 2) / 2.0
        prior += theta[-2] ** 2 / 8.0 + (theta[-1] - np.log(0.03)) ** 2 / 8.0
        return float(0.5 * solved @ solved + np.sum(np.log(np.diag(lower))) + prior)


class Forest:
    """Bagged, extremely randomised trees; held-out predictions are those of trees that did not draw the trial."""

    def __init__(self, points: Array, values: Array, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        n = len(points)
        self._trees: list[Callable[[Array], Array]] = []
        sums, counts = np.zeros(n), np.zeros(n)
        for _ in range(_TREES):
            drawn = rng.integers(0, n, n)
            tree = _tree(points[drawn], values[drawn], rng)
            self._trees.append(tree)
            out = np.setdiff1d(np.arange(n), drawn)
            if len(out):
                sums[out] += tree(points[out])
                counts[out] += 1
        self.held_out: Array = np.where(counts > 0, sums / np.maximum(counts, 1), values.mean())

    def __call__(self, points: Array) -> Array:
        predicted: Array = np.mean([tree(points) for tree in self._trees], axis=0)
        return predicted


def _tree(points: Array, values: Array, rng: np.random.Generator) -> Callable[[Array], Array]:
    """A tree whose cuts are the best of one random cut in each dimension."""
    best: tuple[float, int, float] | None = None
    if len(values) >= 2 * _SMALLEST_LEAF and np.ptp(values) > 0.0:
        for dim in range(points.shape[1]):
            low, high = points[:, dim].min(), points[:, dim].max()
            if low == high:
                continue
            cut = rng.uniform(low, high)
            left = points[:, dim] <= cut
            if min(left.sum(), (~left).sum()) < 1:
                continue
            loss = values[left].var() * left.sum() + values[~left].var() * (~left).sum()
            if best is None or loss < best[0]:
                best = (float(loss), dim, float(cut))
    if best is None:
        mean = float(values.mean())
        return lambda asked: np.full(len(asked), mean)
    _, dim, cut = best
    left = points[:, dim] <= cut
    below, above = _tree(points[left], values[left], rng), _tree(points[~left], values[~left], rng)

    def walk(asked: Array) -> Array:
        is_below = asked[:, dim] <= cut
        found = np.empty(len(asked))
        if is_below.any():
            found[is_below] = below(asked[is_below])
        if not is_below.all():
            found[~is_below] = above(asked[~is_below])
        return found

    return walk
