"""What a statistic gives: numbers for each unit that the verdict rests on, others beside them, and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuning.plots.guideline import LinesData

PerUnit = Mapping[str, float]
"""A number for each unit; NaN where a unit says nothing."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of a statistic.

    Attributes:
        effects: What the rules of the verdict are about, by name.
        details: Numbers beside them, which decide nothing, in the order of the page.
        figures: Figures of the page.
        remarks: What must be said beside the numbers, such as units that say nothing.
    """

    effects: Mapping[str, PerUnit]
    details: Mapping[str, PerUnit] = field(default_factory=dict)
    figures: Sequence[LinesData] = ()
    remarks: Sequence[str] = ()
