"""What is known of each metric of a probe: its words, direction and unit, and what may be asked of it.

This is the only table of metrics. What shows a metric reads it, so that a new one needs its
computation and a line here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

ObjectiveMetric = Literal[
    "forget_closure", "accuracy_closure", "forget_closure_at_utility", "drop_at_target"
]
"""Metrics that a trial may improve: closures are maximised, the drop at the target is minimised."""

ConstraintMetric = Literal[
    "retain_drop",
    "general_drop",
    "retain_accuracy_drop",
    "general_accuracy_drop",
    "retain_forgetting",
    "retain_utility",
]
"""Metrics that may be limited, and that the retain guard may watch."""

AUTO: Final = "auto"
LimitedMetric = Literal[ConstraintMetric, "auto"]
"""The same in a sweep file, where ``auto`` is the damage to retained text on the scale that fits the baseline."""

UtilityMetric = Literal["retain_utility", "retain_extraction_strength"]
"""What may be kept while the trained difference is scaled back."""

STOP_METRIC = r"^(el_[1-9]\d{0,3}|memorization_accuracy|extraction_strength|exact_memorization)$"
"""Names of the forget metrics that stop rules know."""

Role = Literal[
    "level", "objective", "constraint", "utility", "comparison", "stop", "calibration", "training"
]
"""What a metric is for. ``level``: how well a set is predicted; ``comparison``: shown, but nothing decides
by it; ``calibration``: of the comparison at equal utility; ``training``: state of the training itself."""

Direction = Literal["up", "down", "near 0"]
"""Where better values lie."""

Unit = Literal["", "nats per token", "share of tokens"]
"""Unit of a metric, and of its limits; empty where the number says it."""


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """What a metric is, in words and kinds.

    Attributes:
        label: Short name, of which the first word may stand on a line of its own.
        role: What the metric is for.
        meaning: What the number is; one clause, without direction.
        better: Where better values lie; ``None`` where no value is better.
        unit: Its unit, and that of its limits.
        is_difference: Whether its sign is shown, since 0 means as before, or as the target.
        title: Name in full with unit or scale, where that is more than label and unit.
    """

    label: str
    role: Role
    meaning: str
    better: Direction | None
    unit: Unit = ""
    is_difference: bool = False
    title: str = ""

    @property
    def direction(self) -> str:
        """``up is better`` and the like; empty where no value is better."""
        return "" if self.better is None else f"{self.better} is better"

    @property
    def description(self) -> str:
        """Meaning and direction."""
        return "; ".join(part for part in (self.meaning, self.direction) if part)

    @property
    def full_name(self) -> str:
        """The title, or label and unit."""
        return self.title or (f"{self.label} ({self.unit})" if self.unit else self.label)


METRICS: Final[Mapping[str, MetricFacts]] = {
    "forget_nll": MetricFacts(
        label="forget cross-entropy",
        role="level",
        meaning="cross-entropy of the forget set",
        better=None,
        unit="nats per token",
    ),
    "forget_perplexity": MetricFacts(
        label="forget perplexity",
        role="level",
        meaning="exponential of the forget set's cross-entropy",
        better=None,
    ),
    "forget_accuracy": MetricFacts(
        label="forget accuracy",
        role="level",
        meaning="next-token accuracy of the forget set",
        better=None,
        title="forget next-token accuracy",
    ),
    "retain_nll": MetricFacts(
        label="retain cross-entropy",
        role="level",
        meaning="cross-entropy of the retain set",
        better="down",
        unit="nats per token",
    ),
    "retain_perplexity": MetricFacts(
        label="retain perplexity",
        role="level",
        meaning="exponential of the retain set's cross-entropy",
        better="down",
    ),
    "retain_accuracy": MetricFacts(
        label="retain accuracy",
        role="level",
        meaning="next-token accuracy of the retain set",
        better="up",
        title="retain next-token accuracy",
    ),
    "general_nll": MetricFacts(
        label="general cross-entropy",
        role="level",
        meaning="cross-entropy of the general set",
        better="down",
        unit="nats per token",
    ),
    "general_perplexity": MetricFacts(
        label="general perplexity",
        role="level",
        meaning="exponential of the general set's cross-entropy",
        better="down",
    ),
    "general_accuracy": MetricFacts(
        label="general accuracy",
        role="level",
        meaning="next-token accuracy of the general set",
        better="up",
        title="general next-token accuracy",
    ),
    "forget_closure": MetricFacts(
        label="forget closure",
        role="objective",
        meaning="share of the way to unseen text, by cross-entropy",
        better="up",
        title="forget closure (1 = looks unseen)",
    ),
    "accuracy_closure": MetricFacts(
        label="accuracy closure",
        role="objective",
        meaning="the same by next-token accuracy",
        better="up",
        title="accuracy closure (1 = looks unseen)",
    ),
    "accuracy_gap": MetricFacts(
        label="accuracy gap",
        role="comparison",
        meaning="forget accuracy minus that of unseen text",
        better="near 0",
        is_difference=True,
    ),
    "retain_drop": MetricFacts(
        label="retain drop",
        role="constraint",
        meaning="rise of retain cross-entropy",
        better="down",
        unit="nats per token",
        is_difference=True,
    ),
    "general_drop": MetricFacts(
        label="general drop",
        role="constraint",
        meaning="rise of general cross-entropy",
        better="down",
        unit="nats per token",
        is_difference=True,
    ),
    "retain_accuracy_drop": MetricFacts(
        label="retain accuracy drop",
        role="constraint",
        meaning="fall of retain accuracy",
        better="down",
        unit="share of tokens",
        is_difference=True,
    ),
    "general_accuracy_drop": MetricFacts(
        label="general accuracy drop",
        role="constraint",
        meaning="fall of general accuracy",
        better="down",
        unit="share of tokens",
        is_difference=True,
    ),
    "retain_forgetting": MetricFacts(
        label="retain forgetting",
        role="constraint",
        meaning="share of its advantage over unseen text that retained text has lost",
        better="down",
        is_difference=True,
    ),
    "retain_utility": MetricFacts(
        label="retain utility",
        role="utility",
        meaning="retain accuracy, now / before",
        better="up",
    ),
    "retain_extraction_strength": MetricFacts(
        label="retain extraction strength",
        role="utility",
        meaning="share of a retain row that need not be given away for the rest to follow",
        better="up",
    ),
    "forget_closure_at_utility": MetricFacts(
        label="forget closure at utility",
        role="objective",
        meaning="forget closure, scaled back until utility is kept",
        better="up",
    ),
    "drop_at_target": MetricFacts(
        label="drop at target",
        role="objective",
        meaning=(
            "largest damage to what is limited, where the forget set lies on its target; 2 - forget_closure, "
            "1 and more, where it does not"
        ),
        better="down",
        is_difference=True,
        title="drop at target (1 and more: short of it)",
    ),
    "landing_factor": MetricFacts(
        label="landing factor",
        role="calibration",
        meaning="share of the trained difference at which the forget set lies on its target",
        better=None,
    ),
    "calibration_factor": MetricFacts(
        label="calibration factor",
        role="calibration",
        meaning="share of the trained difference that may stay while utility is kept",
        better="up",
    ),
    "unscaled_forget_closure": MetricFacts(
        label="unscaled forget closure",
        role="calibration",
        meaning="forget closure of the whole trained difference",
        better="up",
    ),
    "unscaled_retain_drop": MetricFacts(
        label="unscaled retain drop",
        role="calibration",
        meaning="rise of retain cross-entropy under the whole trained difference",
        better="down",
        unit="nats per token",
        is_difference=True,
    ),
    "memorization_accuracy": MetricFacts(
        label="memorization accuracy",
        role="stop",
        meaning="share of a forget row's tokens that are the greedy choice",
        better="down",
    ),
    "extraction_strength": MetricFacts(
        label="extraction strength",
        role="stop",
        meaning="share of a forget row that need not be given away for the rest to follow",
        better="down",
    ),
    "exact_memorization": MetricFacts(
        label="exact memorization",
        role="stop",
        meaning="share of a forget answer's tokens that are the greedy choice",
        better="down",
    ),
    "dual_variable": MetricFacts(
        label="dual variable",
        role="training",
        meaning="weight of the retain loss under pdu",
        better=None,
    ),
}
"""Facts of each metric by its name in a probe, in the order in which tables show them."""


def metric_facts(name: str) -> MetricFacts:
    """Facts of a metric, also of one of a family such as ``el_10``.

    Args:
        name: As probes, constraints and stop rules call it.

    Raises:
        ValueError: If no metric is called so.
    """
    if name in METRICS:
        return METRICS[name]
    if re.fullmatch(STOP_METRIC, name):  # what the table does not hold of them is el_N
        n = name.removeprefix("el_")
        return MetricFacts(
            label=f"extraction likelihood {n}",
            role="stop",
            meaning=f"overlap of {n} tokens between what the model goes on with and the forget row",
            better="down",
        )
    raise ValueError(f"a metric must be known by name, got {name!r}; known: {', '.join(METRICS)}")
