"""Comparison at equal utility: how much of a trained difference may stay (Unlearning with Control)."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Final

from core.config import SelectionConfig
from core.data.tokens import TokenSplits, measured_part
from core.measuring.meter import Meter
from core.metrics.intervals import Sums
from core.metrics.probes import Levels, level
from core.model.loading import Forward

ON_TARGET: Final = 0.02
"""Part of the way to a limit within which a factor lies on it: several times less than the noise of a level."""

Scaled = Callable[[float], AbstractContextManager[None]]
"""Makes a trained difference count a factor within a context."""


def largest_factor(
    utility: Callable[[float], float],
    *,
    original: float,
    at_least: float,
    up_to: float = 1.0,
    steps: int = 8,
) -> float:
    r"""Largest share of the trained difference at which the utility is kept.

    .. math::
        \max \{\, c \in [0, c_1] : u(\theta_0 + c \, (\theta - \theta_0)) \ge u_\mathrm{min} \,\}

    ``up_to``, :math:`c_1`, when it keeps the utility, after a single evaluation; 0 when no share that was
    looked at does, which leaves the original model. Methods are then compared by what they forget at
    this factor, where all of them are equally useful.

    Args:
        utility: Utility, more is better, of the model with a share of the difference. It is called with
            ``up_to`` and then at most ``steps`` times, never with 0. Not a number counts as not kept.
        original: Utility of the original model, at 0.
        at_least: Smallest utility that counts as kept; the paper takes 0.95 of the original model's.
        up_to: Largest share that is asked about.
        steps: Factors that the search looks at, at most. It ends when the utility is kept and nearer to
            ``at_least`` than :data:`ON_TARGET` of what may be lost.

    Returns:
        A factor that ``utility`` was seen to keep, or 0. Where the utility does not fall monotonically there may be
        larger ones. If it is not that near to ``at_least``, one is lost at most ``up_to * 2 ** -(steps // 2)`` above.

    Raises:
        ValueError: If ``at_least`` is not finite or greater than ``original``, or if ``steps`` is not positive.

    References:
        Wang et al., "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods",
        ICLR 2025, section on model mixing.
    """
    if not math.isfinite(at_least):
        raise ValueError(f"at_least must be finite, got {at_least}")
    if not original >= at_least:
        raise ValueError(f"original must keep at_least={at_least}, got {original}")
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    allowed = original - at_least

    def loss(factor: float) -> float:
        """What is lost beyond the limit, in units of what may be lost; just kept where nothing may be lost."""
        now = utility(factor)
        if allowed > 0.0:
            return (at_least - now) / allowed
        return -1.0 if now >= at_least else math.inf

    seen = _search(loss, up_to=up_to, lowest=-ON_TARGET, highest=0.0, steps=steps)
    return max(factor for factor, lost in seen.items() if lost <= 0.0)


def nearest_factor(
    utility: Callable[[float], float],
    forget_level: Callable[[float], float],
    *,
    original: float,
    at_least: float,
    before: float,
    target: float,
    steps: int = 8,
) -> float:
    r"""Share of the trained difference that keeps the utility and forgets nearest to the target.

    .. math::
        \arg\min_{c \in [0, 1],\; u(c) \ge u_\mathrm{min}} |f(c) - f^*|

    A trial that is past the target overshot: somewhere below 1 it lies on target, and it is judged there. If the
    utility is lost there, or at 1 for a trial that is short of the target, the nearest is the largest factor below
    that keeps it, as in the paper: :func:`largest_factor`.

    Args:
        utility: Utility, more is better, at a factor; never called with 0. Not a number counts as not kept.
        forget_level: Level of the forget set at a factor, nats per token; never called with 0.
        original: Utility of the original model.
        at_least: Smallest utility that counts as kept.
        before: ``forget_level`` of the original model.
        target: Level that forgetting aims at, on the other side of it.
        steps: Factors that each of the two searches looks at, at most, beside 1. The first ends when the level is
            nearer to the target than :data:`ON_TARGET` of the way to it.

    Returns:
        A factor in [0, 1] that is 0 or was seen to keep the utility.

    Raises:
        ValueError: As :func:`largest_factor`.
    """

    def overshoot(factor: float) -> float:
        """Signed way past the target, in units of the way to it; what is not a number is past all."""
        share = (forget_level(factor) - target) / (target - before)
        return math.inf if math.isnan(share) else share

    seen = _search(overshoot, up_to=1.0, lowest=-ON_TARGET, highest=ON_TARGET, steps=steps)
    nearest = min(seen, key=lambda factor: (abs(seen[factor]), -factor))
    if nearest == 0.0:
        return 0.0
    return largest_factor(utility, original=original, at_least=at_least, up_to=nearest, steps=steps)


def _search(
    excess: Callable[[float], float], *, up_to: float, lowest: float, highest: float, steps: int
) -> dict[float, float]:
    """Factors that were looked at for one whose excess lies between two bounds, and their excess.

    ``up_to`` is looked at first, and alone if it does not exceed the upper bound. Then the bracket between 0 and it is
    narrowed along the straight line through its ends, and by its middle where that has not halved it.

    Args:
        excess: Signed way past a limit, in units of the way to it: -1 at 0, which is not asked for. What is not
            finite is past it.
        up_to: Upper end of the bracket.
        lowest: Lower bound, between -1 and ``highest``.
        highest: Upper bound.
        steps: Factors that are looked at after ``up_to``, at most.
    """
    seen = {0.0: -1.0, up_to: excess(up_to)}
    if seen[up_to] <= highest:
        return seen
    aim = (lowest + highest) / 2.0
    short, past, has_halved = 0.0, up_to, True
    for _ in range(steps):
        width = past - short
        share = (aim - seen[short]) / (seen[past] - seen[short])
        guess = short + width * (share if has_halved and 0.0 < share < 1.0 else 0.5)
        seen[guess] = excess(guess)
        if lowest <= seen[guess] <= highest:
            break
        short, past = (guess, past) if seen[guess] < lowest else (short, guess)
        has_halved = past - short <= width / 2.0
    return seen


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
        if not all(math.isfinite(level(of_rows).nll) for of_rows in whole.values()):
            return 1.0, whole

        @cache
        def sums(name: str, factor: float) -> Sums:
            if factor == 1.0:
                return whole[name]
            rows = self.data[measured_part(name, self.part)]
            with scaled(factor):
                return self.meter.row_sums(forward, rows)

        def utility(factor: float) -> float:
            if self.selection.utility == "retain_utility":
                return level(sums("retain", factor)).accuracy
            with scaled(factor):
                rows = self.data[f"retain_{self.part}"]
                return self.meter.row_mean(forward, rows, "extraction_strength")

        factor = nearest_factor(
            utility,
            lambda factor: level(sums("forget", factor)).nll,
            original=self.original_utility,
            at_least=self.selection.tau * self.original_utility,
            before=self.baseline["forget"].nll,
            target=self.baseline["target"].nll,
        )
        return factor, {name: sums(name, factor) for name in whole}
