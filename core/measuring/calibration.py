"""Comparison at equal utility: how much of a trained difference may stay (Unlearning with Control)."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Final

from core.config import SelectionConfig
from core.data.tokens import TokenSplits
from core.measuring.meter import Meter
from core.metrics.intervals import Sums
from core.metrics.probes import Levels, level
from core.model.loading import Forward

ON_TARGET: Final = 0.02
"""Part of the way to the target within which a factor lies on it: several times less than the noise of a level."""

Scaled = Callable[[float], AbstractContextManager[None]]
"""Makes a trained difference count a factor within a context."""


def largest_factor(utility: Callable[[float], float], *, at_least: float, steps: int = 8) -> float:
    r"""Largest share of the trained difference at which the utility is kept, by bisection.

    .. math::
        \max \{\, c \in [0, 1] : u(\theta_0 + c \, (\theta - \theta_0)) \ge u_\mathrm{min} \,\}

    1 when the whole difference keeps the utility, after a single evaluation; 0 when no share that was
    looked at does, which leaves the original model. Methods are then compared by what they forget at
    this factor, where all of them are equally useful.

    Args:
        utility: Utility, more is better, of the model with a share of the difference. It is called with
            1 and then at most ``steps`` times, never with 0: there it is the original model's, of which
            ``at_least`` is a part. Not a number counts as not kept.
        at_least: Smallest utility that counts as kept; the paper takes 0.95 of the original model's.
        steps: Halvings of ``[0, 1]``; the answer is at most ``2 ** -steps`` too small.

    Returns:
        A factor that ``utility`` was seen to keep, or 0; a multiple of ``2 ** -steps``. Where the
        utility does not fall monotonically there may be larger ones: what is returned is kept, and at
        one not more than ``2 ** -steps`` above it the utility is not.

    Raises:
        ValueError: If ``at_least`` is not finite or ``steps`` is not positive.

    References:
        Wang et al., "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods",
        ICLR 2025, section on model mixing.
    """
    if not math.isfinite(at_least):
        raise ValueError(f"at_least must be finite, got {at_least}")
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    if utility(1.0) >= at_least:
        return 1.0
    kept, lost = 0.0, 1.0
    for _ in range(steps):
        middle = (kept + lost) / 2.0
        if utility(middle) >= at_least:
            kept = middle
        else:
            lost = middle
    return kept


def nearest_factor(
    utility: Callable[[float], float],
    forget_level: Callable[[float], float],
    *,
    at_least: float,
    before: float,
    target: float,
    steps: int = 8,
) -> float:
    r"""Share of the trained difference that keeps the utility and forgets nearest to the target.

    .. math::
        \arg\min_{c \in [0, c_\mathrm{max}],\; u(c) \ge u_\mathrm{min}} |f(c) - f^*|

    with :math:`c_\mathrm{max}` from :func:`largest_factor`. A trial that is still short of the target
    there keeps that factor, as in the paper. One that is past it overshot: somewhere below, it lies on
    target, and it is judged there, found between 0, which lies before the target, and the largest factor:
    along the straight line through the ends of the bracket, and by its middle where that has not halved it.

    That the utility is kept at the largest factor says nothing about smaller ones: it is looked at where
    the search ends, and where it is lost there, the next nearest factor that was seen counts, down to 0,
    the original model.

    Args:
        utility: Utility, more is better, at a factor; never called with 0. Not a number counts as not kept.
        forget_level: Level of the forget set at a factor, nats per token; never called with 0.
        at_least: Smallest utility that counts as kept.
        before: ``forget_level`` of the original model.
        target: Level that forgetting aims at, on the other side of it.
        steps: Factors that each of the two searches looks at, at most. The second ends when the level is nearer
            to the target than :data:`ON_TARGET` of the way to it.

    Returns:
        A factor in [0, 1] that is 0 or was seen to keep the utility. At most ``2 * steps + 1`` factors are
        looked at.

    Raises:
        ValueError: As :func:`largest_factor`.
    """
    utility, forget_level = cache(utility), cache(forget_level)
    largest = largest_factor(utility, at_least=at_least, steps=steps)
    if largest == 0.0:
        return 0.0

    def overshoot(factor: float) -> float:
        """Signed way past the target, in units of the way to it; what is not a number is past all."""
        share = (forget_level(factor) - target) / (target - before)
        return math.inf if math.isnan(share) else share

    seen = {0.0: -1.0, largest: overshoot(largest)}
    short, past = 0.0, largest
    guess = _crossing(short, past, seen)
    while (
        seen[largest] > 0.0 and min(map(abs, seen.values())) > ON_TARGET and len(seen) < steps + 2
    ):
        width = past - short
        seen[guess] = overshoot(guess)
        short, past = (guess, past) if seen[guess] < 0.0 else (short, guess)
        has_halved = past - short <= width / 2.0
        guess = _crossing(short, past, seen) if has_halved else (short + past) / 2.0
    nearest = sorted(seen, key=lambda factor: (abs(seen[factor]), -factor))
    return next(c for c in nearest if c == 0.0 or utility(c) >= at_least)


def _crossing(short: float, past: float, seen: Mapping[float, float]) -> float:
    """Where the straight line between the ends of a bracket crosses 0; its middle where there is no such line."""
    share = -seen[short] / (seen[past] - seen[short])
    return short + (past - short) * share if 0.0 < share < 1.0 else (short + past) / 2.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Comparison at equal utility on one part of the data (UWC).

    Attributes:
        selection: Says which utility, and which share ``tau`` of it is kept.
        meter: Measures.
        data: Rows.
        part: ``probe`` or ``report``.
        baseline: Levels of the target model.
        original_utility: The target model's utility on the retain part.

    References:
        Wang et al., "Unlearning with Control", ICLR 2025.
    """

    selection: SelectionConfig
    meter: Meter
    data: TokenSplits
    part: str
    baseline: Levels
    original_utility: float

    def scaled_back(
        self, forward: Forward, whole: Mapping[str, Sums], scaled: Scaled
    ) -> tuple[float, Mapping[str, Sums]]:
        """The factor at which a trial is compared, and what is measured there.

        Args:
            forward: The model with the whole difference.
            whole: Its row sums.
            scaled: Scales the difference.

        Returns:
            A factor in [0, 1], see :func:`nearest_factor`, and row sums of the model scaled by it. A model
            that diverged is not scaled.
        """
        if not all(math.isfinite(level(sums).nll) for sums in whole.values()):
            return 1.0, whole

        def forget_level(factor: float) -> float:
            if factor == 1.0:
                return level(whole["forget"]).nll
            with scaled(factor):
                return self.meter.level(forward, self.data["forget"]).nll

        factor = nearest_factor(
            lambda factor: self._utility(forward, whole, scaled, factor),
            forget_level,
            at_least=self.selection.tau * self.original_utility,
            before=self.baseline["forget"].nll,
            target=self.baseline["target"].nll,
        )
        if factor == 1.0:
            return factor, whole
        with scaled(factor):
            return factor, self.meter.sums(forward, self.data, part=self.part)

    def _utility(
        self, forward: Forward, whole: Mapping[str, Sums], scaled: Scaled, factor: float
    ) -> float:
        retain = self.data[f"retain_{self.part}"]
        if self.selection.utility == "retain_utility":
            if factor == 1.0:
                return level(whole["retain"]).accuracy
            with scaled(factor):
                return self.meter.level(forward, retain).accuracy
        with scaled(factor):
            return self.meter.row_mean(forward, retain, "extraction_strength")
