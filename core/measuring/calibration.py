"""Comparison at equal utility: how much of a trained difference may stay (Unlearning with Control)."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from core.config import SelectionConfig
from core.data.tokens import TokenSplits
from core.measuring.meter import Meter
from core.metrics.probes import Levels, degradation
from core.model.loading import Forward


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

    def metrics(
        self,
        forward: Forward,
        levels: Levels,
        scaled: Callable[[float], AbstractContextManager[None]],
    ) -> dict[str, float]:
        """Metrics with the trained difference scaled back until utility is kept.

        Args:
            forward: The model with the whole difference.
            levels: Its levels.
            scaled: Makes the difference count a factor within a context.

        Returns:
            The metrics of a probe of the scaled model; ``forget_closure_at_utility``, which is its
            ``forget_closure``; ``calibration_factor`` in [0, 1]; and of the whole difference
            ``unscaled_forget_closure`` and ``unscaled_retain_drop``. A model that diverged is not scaled.
        """
        whole = degradation(levels, self.baseline)
        factor = 1.0
        if all(math.isfinite(at.nll) for at in levels.values()):
            factor = largest_factor(
                lambda factor: self._utility(forward, levels, scaled, factor),
                at_least=self.selection.tau * self.original_utility,
            )
        metrics = whole
        if factor < 1.0:
            with scaled(factor):
                found = self.meter.levels(forward, self.data, part=self.part)
            metrics = degradation(found, self.baseline)
        return metrics | {
            "forget_closure_at_utility": metrics["forget_closure"],
            "calibration_factor": factor,
            "unscaled_forget_closure": whole["forget_closure"],
            "unscaled_retain_drop": whole["retain_drop"],
        }

    def _utility(
        self,
        forward: Forward,
        levels: Levels,
        scaled: Callable[[float], AbstractContextManager[None]],
        factor: float,
    ) -> float:
        retain = self.data[f"retain_{self.part}"]
        if self.selection.utility == "retain_utility":
            if factor == 1.0:
                return levels["retain"].accuracy
            with scaled(factor):
                return self.meter.level(forward, retain).accuracy
        with scaled(factor):
            return self.meter.row_mean(forward, retain, "extraction_strength")
