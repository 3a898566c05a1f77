"""Scenarios by what is broken in them; each adds its cases to a tally."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from faults.bench import Bench
from faults.scenarios import calls, files, kills, surroundings, values
from faults.tally import Tally

Scenario = Callable[[Bench, Tally], None]

SCENARIOS: Mapping[str, Scenario] = {
    **kills.SCENARIOS,
    **calls.SCENARIOS,
    **files.SCENARIOS,
    **values.SCENARIOS,
    **surroundings.SCENARIOS,
}
"""By their names, in the order of the table. What one does is said in its docstring."""
