"""What a dry run can say of the baseline: on which scale ``auto`` will count damage, and which limits are off."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from core.config import TrialConfig
from core.data.counts import Counts
from core.errors import UserError
from core.measuring.scale import RetainScale, limit_warnings
from tuning.config import SweepSpec
from tuning.space import bind, corner_proposals
from tuning.validate import late_guard

LONGEST_S = 60.0
"""A dry run measures the baseline only where that takes at most this long, by a guess."""
_FLOPS_PER_CORE = 4e10

RULE = (
    "auto is retain_forgetting where the retain set is known by heart (at most half the cross-entropy of unseen text "
    "of its kind), else retain_drop; the baseline decides before the first trial"
)


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """What is known of the limits before anything is started.

    Attributes:
        scale: What ``auto`` is, and why; empty if the file has none.
        warnings: What a person should know of the limits.
    """

    scale: str
    warnings: list[str]

    @property
    def lines(self) -> list[str]:
        """For a person."""
        scale = [f"scale of damage to retained text: {self.scale}"] if self.scale else []
        return [*scale, *(f"warning: {warning}" for warning in self.warnings)]

    @property
    def plain(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def foresee(
    spec: SweepSpec, *, n_parameters: int | None, counts: Mapping[str, Counts] | None
) -> Foresight:
    """Look ahead: the baseline is measured, or found in the cache, only if ``auto`` needs it.

    Args:
        spec: The sweep.
        n_parameters: Weights of its model; ``None`` if it is not on this machine.
        counts: What its data holds, by part; ``None`` if it is not on this machine.
    """
    selection = spec.trial_selection()
    late = late_guard(selection)
    warnings = [] if late is None else [late]
    if not spec.has_auto:
        return Foresight(scale="", warnings=warnings)
    trial = bind(spec, next(iter(corner_proposals(spec))), where="sweep")
    try:
        if n_parameters is None or counts is None:
            return Foresight(scale=RULE, warnings=warnings)
        if _seconds(trial, counts, n_parameters) > LONGEST_S:
            return Foresight(scale=RULE, warnings=warnings)
        probe, report = _baselines(trial)
    except UserError as err:
        refused = f"the baseline cannot be taken on this machine: {err}"
        return Foresight(scale=RULE, warnings=[*warnings, refused])
    scale = RetainScale.of(probe, report)
    chosen = spec.with_auto_as(scale.metric).trial_selection()
    return Foresight(scale=scale.why, warnings=[*warnings, *limit_warnings(chosen, probe)])


def _baselines(trial: TrialConfig) -> list[Mapping[str, float]]:
    from core.measuring.baselines import baseline_levels
    from core.training.ranks import Group
    from core.training.warm import Warm

    warm, alone = Warm(), Group(rank=0, size=1)
    found: list[Mapping[str, float]] = []
    for part in ("probe", "report"):
        levels = baseline_levels(trial, warm, alone, part=part)
        nlls = {f"{name}_nll": at.nll for name, at in levels.items()}
        found.append(nlls | {f"{name}_accuracy": at.accuracy for name, at in levels.items()})
    return found


def _seconds(trial: TrialConfig, counts: Mapping[str, Counts], n_parameters: int) -> float:
    """A guess: each token of the baseline once forward, on the cores of a rank."""
    measured = [found for part, found in counts.items() if not part.endswith("_train")]
    n_tokens = sum(found.tokens for found in measured)
    return 2 * n_parameters * n_tokens / (_FLOPS_PER_CORE * trial.engine.threads)
