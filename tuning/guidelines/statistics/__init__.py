"""Every statistic by its name in a guideline's file: a pure function of trials and settings."""

from collections.abc import Callable, Mapping

from tuning.guidelines.findings import Findings
from tuning.guidelines.statistics.choices import edge_hits, knob_effects, lost_winners, rank_flips
from tuning.guidelines.statistics.damage import (
    after_the_target,
    damage_difference,
    low_rank_damage,
    slow_but_gentle,
)
from tuning.guidelines.statistics.effort import cost_ratio, speed_up
from tuning.guidelines.statistics.rates import (
    rate_dependence,
    rate_ratio,
    rate_shift,
    stability,
    window_margin,
)

Statistic = Callable[..., Findings]
"""Takes the evidence, then the settings of the guideline's file by keyword."""

STATISTICS: Mapping[str, Statistic] = {
    "window_margin": window_margin,
    "damage_difference": damage_difference,
    "cost_ratio": cost_ratio,
    "after_the_target": after_the_target,
    "stability": stability,
    "speed_up": speed_up,
    "low_rank_damage": low_rank_damage,
    "knob_effects": knob_effects,
    "rate_shift": rate_shift,
    "slow_but_gentle": slow_but_gentle,
    "rank_flips": rank_flips,
    "rate_dependence": rate_dependence,
    "lost_winners": lost_winners,
    "edge_hits": edge_hits,
    "rate_ratio": rate_ratio,
}
