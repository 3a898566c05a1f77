"""On which scale damage to retained text is limited: nats, or the share of what the model knows of it.

A rise of 0.1 nats means something else on text that the model knows by heart (TOFU: 0.12 nats, unseen text of its
kind 2.62) than on ordinary text (4.3 nats). Pure rules over the levels of a baseline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from core.config import AUTO, LimitedMetric, SelectionConfig

MIN_GAP_NATS: Final = 0.3
"""Smallest difference of cross-entropy of which shares are taken: between the forget set and its target, and
between the retain set and unseen text."""

KNOWN_BY_HEART: Final = 0.5
"""The retain set is known by heart where its cross-entropy is at most this part of unseen text's."""

_SENSIBLE_SHARE: Final = (0.05, 0.50)
"""Of the advantage over unseen text: below, hardly anything can be forgotten beside it; above, most may go."""
_SENSIBLE_RISE: Final = (0.02, 0.50)
"""Of ordinary text: nats per token, about the relative rise of perplexity, or the share of the accuracy."""

ScaleMetric = Literal["retain_drop", "retain_forgetting"]


@dataclass(frozen=True, kw_only=True)
class RetainScale:
    """What the baseline says of the retain set.

    Attributes:
        retain: Its cross-entropy before unlearning, nats per token.
        unseen: That of text of its kind that the model never saw.
    """

    retain: float
    unseen: float

    @classmethod
    def of(cls, *baselines: Mapping[str, float]) -> "RetainScale":
        """Of the split on which the retain set is known least; levels are named as ``retain_nll``."""
        scales = [cls(retain=b["retain_nll"], unseen=b["unseen_nll"]) for b in baselines]
        return min(scales, key=lambda scale: (scale.is_known_by_heart, -scale.retain))

    @property
    def advantage(self) -> float:
        """Nats per token by which the retain set is predicted better than unseen text."""
        return self.unseen - self.retain

    @property
    def is_known_by_heart(self) -> bool:
        """Whether the retain set costs at most half of what unseen text costs, and clearly less."""
        return self.advantage >= MIN_GAP_NATS and self.retain <= KNOWN_BY_HEART * self.unseen

    @property
    def metric(self) -> ScaleMetric:
        """The metric that ``auto`` stands for."""
        return "retain_forgetting" if self.is_known_by_heart else "retain_drop"

    @property
    def why(self) -> str:
        """The choice and its reason, in a sentence."""
        levels = f"cross-entropy {self.retain:.2f}, unseen text of its kind {self.unseen:.2f}"
        if self.is_known_by_heart:
            return (
                f"auto is retain_forgetting: the retain set is known by heart ({levels}), so damage is counted as "
                f"the share of this advantage of {self.advantage:.2f} nats that is lost"
            )
        return (
            f"auto is retain_drop: the retain set is ordinary text ({levels}; known by heart is at most "
            f"{KNOWN_BY_HEART:.0%} of that), so damage is counted in nats"
        )


def limit_warnings(selection: SelectionConfig, baseline: Mapping[str, float]) -> list[str]:
    """Limits that lie far below or above what the baseline makes sensible, one sentence each.

    Args:
        selection: Constraints and guard.
        baseline: Levels before unlearning, as ``retain_nll``, ``unseen_nll``, ``retain_accuracy`` and so on.
    """
    limits: dict[tuple[LimitedMetric, float], str] = {}
    for constraint in selection.constraints:
        limits[constraint.metric, round(constraint.tolerance, 9)] = "constraints"
    guard = selection.retain_guard
    for metric in guard.metrics if guard else ():
        assert guard is not None
        limits.setdefault((metric, guard.limit), "the retain guard")
    found = [_warning(place, *limit, baseline) for limit, place in limits.items()]
    return [warning for warning in found if warning]


def _warning(
    place: str, metric: LimitedMetric, tolerance: float, baseline: Mapping[str, float]
) -> str | None:
    scale = RetainScale.of(baseline)
    is_share = scale.is_known_by_heart and metric.startswith("retain_")
    size = _as_share(metric, tolerance, baseline) if is_share else None
    low, high = _SENSIBLE_SHARE
    what = "of the advantage that the retain set has over unseen text"
    if size is None:
        is_share, size = False, _as_rise(metric, tolerance, baseline)
        (low, high), what = _SENSIBLE_RISE, "nats per token, or of the accuracy"
    if low <= size <= high:
        return None
    where, bound = ("below", low) if size < low else ("above", high)
    shown = (f"{size:.1%}", f"{bound:.0%}") if is_share else (f"{size:.3g}", f"{bound:g}")
    return (
        f"{place}: the limit of {metric}, {tolerance:g} from the untouched model, lies far {where} what the "
        f"baseline makes sensible: it is {shown[0]} {what}, and {shown[1]} is little to lose or much; "
        f"`metric: {AUTO}` with 0.1 takes the scale that fits"
    )


def _as_share(
    metric: LimitedMetric, tolerance: float, baseline: Mapping[str, float]
) -> float | None:
    """A tolerance as a share of the advantage over unseen text; ``None`` where there is no such advantage."""
    if metric == "retain_forgetting":
        return tolerance
    if metric == "retain_drop":
        return tolerance / RetainScale.of(baseline).advantage
    before = baseline["retain_accuracy"]
    lost = tolerance * before if metric == "retain_utility" else tolerance
    advantage = before - baseline["unseen_accuracy"]
    return lost / advantage if advantage > 0.0 else None


def _as_rise(metric: LimitedMetric, tolerance: float, baseline: Mapping[str, float]) -> float:
    """A tolerance in nats per token, or as a share of the accuracy before."""
    if metric == "retain_forgetting":
        return tolerance * RetainScale.of(baseline).advantage
    if metric.endswith("_accuracy_drop"):
        before = baseline[f"{metric.partition('_')[0]}_accuracy"]
        return tolerance / before if before else tolerance
    return tolerance
