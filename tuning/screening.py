"""What a worker reports is looked at before anybody decides by it: every metric that is read is there, and a number.

Numbers that are not finite are let through: the guard and the rules of selection know what they mean, and such a probe
is never feasible.
"""

from collections.abc import Mapping
from typing import Any

from core.config import SelectionConfig
from core.measuring.selection import Probe, damaged_metrics


def probe_problem(probe: Probe, selection: SelectionConfig) -> str | None:
    """What is wrong with a probe, in words; ``None`` if it can be judged."""
    if isinstance(probe.step, bool) or not isinstance(probe.step, int) or probe.step < 1:
        return f"a probe's step must be a positive integer, got {probe.step!r}"
    for candidate in (probe, probe.landed):
        if candidate is not None:
            problem = _metrics_problem(candidate.metrics, selection)
            if problem is not None:
                return f"the probe at step {probe.step} cannot be judged: {problem}"
    return None


def _metrics_problem(metrics: Any, selection: SelectionConfig) -> str | None:
    if not isinstance(metrics, Mapping):
        return f"metrics by name are expected, got {metrics!r}"
    limits = [str(c.metric) for c in selection.constraints]
    missing = {str(selection.metric), "forget_nll", *limits, *damaged_metrics(selection)}
    missing -= metrics.keys()
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, float | int):
            return f"{name} must be one number, got {value!r}"
    return None
