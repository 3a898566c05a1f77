"""Numbers, durations and parameters in words, as the terminal, the report and model cards show them."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from core.config import metric_facts

NOTHING: Final = "–"
"""Stands where there is no value."""
_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]|~#])")


def as_markdown(value: Any) -> str:
    """A text that Markdown shows as it is, in one line, also in a cell of a table."""
    line = " ".join(str(value).split())
    return _MARKDOWN_SIGNS.sub(r"\\\1", html.escape(line, quote=False))


def as_code(value: Any) -> str:
    """A text that Markdown shows as it is between backticks, of which it has none itself."""
    return " ".join(str(value).split()).replace("`", "'")


def duration(seconds: Any, *, unknown: str = NOTHING) -> str:
    """Seconds in words, such as ``8 s``, ``3 min 7 s`` or ``2 h 1 min``; ``unknown`` if there is no finite number."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return unknown
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def decimals(value: float | None, *, missing: str = "") -> str:
    """Three decimals for columns of plain text, where NaN and infinities stand as Python writes them."""
    return missing if value is None else f"{value:.3f}"


def number(value: Any) -> str:
    """A metric with three decimals; a dash where there is none."""
    if value is None:
        return NOTHING
    if not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(value: Any) -> str:
    """A drop or a difference, with its sign."""
    text = number(value)
    is_plain = isinstance(value, int | float) and value > 0 and text not in ("NaN", "0.000")
    return f"+{text}" if is_plain else text


def measured(value: Any, metric: str) -> str:
    """The value of a metric, with its sign if the metric is a difference."""
    return signed(value) if metric_facts(metric).is_difference else number(value)


def between(ends: tuple[float, float] | None, metric: str) -> str:
    """``0.81 to 1.00``, the ends of an interval of a metric; empty where there is none."""
    if ends is None:
        return ""
    form = "+.2f" if metric_facts(metric).is_difference else ".2f"
    shown = (format(end, form) for end in ends)
    return " to ".join(text[1:] if text in ("-0.00", "+0.00") else text for text in shown)


def with_interval(value: Any, ends: tuple[float, float] | None, metric: str) -> str:
    """``0.910 (0.81 to 1.00)``: a metric with its 95 % interval, where there is one."""
    text = measured(value, metric)
    return text if ends is None else f"{text} ({between(ends, metric)})"


def listed(numbers: Sequence[int]) -> str:
    """``1, 2 and 5``."""
    words = [str(n) for n in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def percent(value: Any) -> str:
    """A share in percent."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    return f"{100 * value:.1f} %"


def score(value: float | str) -> str:
    """Four digits behind the point, small ones by their exponent; what JSON cannot hold is text already."""
    if isinstance(value, str):
        return value
    return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.4f}"


def parameter(value: Any) -> str:
    """A searched value with four digits; a dash where the trial does not have it."""
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parameters(params: Mapping[str, Any]) -> str:
    """``learning_rate=3.2e-04 rank=8``: last parts of the names, short numbers."""
    shown = []
    for name, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        shown.append(f"{name.rpartition('.')[2]}={text}")
    return " ".join(shown)


def heading(metric: str) -> str:
    """Label of a metric over a narrow column: its first word stands on a line of its own."""
    return metric_facts(metric).label.replace(" ", "\n", 1)
