"""Comparison at equal utility: how much of a trained difference may stay (Unlearning with Control)."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from core.config import TrialConfig
from core.data.tokens import TokenSplits
from core.measuring.meter import Meter
from core.metrics.memorization import extraction_strength
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


def mixed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, factor: float
) -> dict[str, Tensor]:
    r"""Weights on the straight line from the original model to the unlearned one.

    .. math::
        \theta_c = \theta_0 + c \, (\theta - \theta_0)

    0 gives ``before`` and 1 gives ``after``, both bit for bit. For a low-rank adapter scale its
    difference instead, which is the same.

    Args:
        before: Name to float weight of the original model, any shape.
        after: Name to weight of the unlearned model: full effective weights, of the same names and shapes.
        factor: c in ``[0, 1]``, the share of the difference.

    Returns:
        Name to weight, of the dtype of ``before``; computed in at least float32.

    Raises:
        ValueError: If names or shapes disagree, or the factor lies outside ``[0, 1]``.

    References:
        Wang et al., ICLR 2025, ``data_module.py`` ``model_mix``. Deviation: its ``ratio`` weights the
        original model and is ``1 - factor``.
    """
    if not 0.0 <= factor <= 1.0:
        raise ValueError(f"factor must lie in [0, 1], got {factor}")
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"before and after must have the same names, only one has {', '.join(odd)}"
        )
    result = {}
    for name, start in before.items():
        end = after[name]
        if start.shape != end.shape:
            raise ValueError(
                f"{name}: before and after must have one shape, "
                f"got {tuple(start.shape)} and {tuple(end.shape)}"
            )
        wide = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
        result[name] = torch.lerp(start.to(wide), end.to(wide), factor).to(start.dtype)
    return result


def calibrated(
    config: TrialConfig,
    meter: Meter,
    forward: Forward,
    data: TokenSplits,
    *,
    part: str,
    levels: Levels,
    baseline: Levels,
    original_strength: float | None,
    scaled: Callable[[float], AbstractContextManager[None]],
) -> dict[str, float]:
    """Metrics at equal utility (UWC): the trained difference scaled back until utility is kept.

    Args:
        config: Says which utility, and which share ``tau`` of it is kept.
        meter: Measures.
        forward: The model with the whole difference.
        data: Rows.
        part: ``probe`` or ``report``.
        levels: Levels of the model with the whole difference.
        baseline: Levels of the target model.
        original_strength: The target model's extraction strength on the retain part, where that is the
            utility.
        scaled: Makes the difference count a factor within a context.

    Returns:
        The metrics of a probe of the scaled model; ``forget_closure_at_utility``, which is its
        ``forget_closure``; ``calibration_factor`` in [0, 1]; and of the whole difference
        ``unscaled_forget_closure`` and ``unscaled_retain_drop``. A model that diverged is not scaled.

    References:
        Wang et al., "Unlearning with Control", ICLR 2025.
    """
    selection = config.selection
    retain = data[f"retain_{part}"]

    def utility(factor: float) -> float:
        if selection.utility == "retain_utility":
            if factor == 1.0:
                return levels["retain"].accuracy
            with scaled(factor):
                return meter.level(forward, retain).accuracy
        with scaled(factor):
            return meter.row_mean(forward, retain, extraction_strength)

    original = (
        baseline["retain"].accuracy
        if selection.utility == "retain_utility"
        else float(original_strength or 0.0)
    )
    whole = degradation(levels, baseline)
    factor = 1.0
    if all(math.isfinite(at.nll) for at in levels.values()):
        factor = largest_factor(utility, at_least=selection.tau * original)
    metrics = whole
    if factor < 1.0:
        with scaled(factor):
            metrics = degradation(meter.levels(forward, data, part=part), baseline)
    return metrics | {
        "forget_closure_at_utility": metrics["forget_closure"],
        "calibration_factor": factor,
        "unscaled_forget_closure": whole["forget_closure"],
        "unscaled_retain_drop": whole["retain_drop"],
    }
