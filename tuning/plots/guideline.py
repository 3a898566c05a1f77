"""What the figures of a guideline show: lines over a knob or over steps, and effects with their intervals."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points that belong together, in the order of ``x``."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LinesData:
    """Lines in one panel.

    Attributes:
        title: What the figure shows, in a sentence.
        x_label: Label of the x axis, with its unit.
        y_label: Label of the y axis, with its unit.
        lines: The lines.
        is_log: Whether the x axis is logarithmic.
        level: A horizontal line that means something; none if absent.
        level_label: What it means.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    is_log: bool = False
    level: float | None = None
    level_label: str = ""


@dataclass(frozen=True, kw_only=True)
class EffectData:
    """A mean with its interval and the number of each unit, and the region that is claimed; ends may be infinite."""

    title: str
    x_label: str
    value: float
    low: float
    high: float
    units: tuple[float, ...]
    claimed_low: float
    claimed_high: float
