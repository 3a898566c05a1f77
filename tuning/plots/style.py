"""How trials look in figures: what they came to, why they ended, and a colour and marker for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["feasible", "infeasible", "pruned", "failed", "running"]
"""What a trial came to, as figures tell it apart."""

Ending = Literal[
    "budget",
    "past_target",
    "no_effect",
    "stop_when",
    "retain_guard",
    "non_finite",
    "ranking_pruner",
    "trial_timeout",
    "failed",
    "other",
]
"""Why a trial ended, as figures tell it apart."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one kind or ending looks: legend text, colour, and marker in either library."""

    label: str
    color: str
    marker: str
    symbol: str


# Okabe and Ito's colours: told apart with any colour vision, on light and dark ground.
KINDS: Final[Mapping[Kind, Style]] = {
    "feasible": Style(label="COMPLETE, feasible", color="#2b83ba", marker="o", symbol="circle"),
    "infeasible": Style(label="COMPLETE, infeasible", color="#e69f00", marker="s", symbol="square"),
    "pruned": Style(label="PRUNED", color="#d55e00", marker="X", symbol="x"),
    "failed": Style(label="FAIL", color="#8a8f98", marker="d", symbol="diamond"),
    "running": Style(label="not ended", color="#cc79a7", marker=".", symbol="circle-open"),
}
ENDINGS: Final[Mapping[Ending, Style]] = {
    "budget": Style(label="budget reached", color="#2b83ba", marker=".", symbol="circle"),
    "past_target": Style(label="past target", color="#e69f00", marker="^", symbol="triangle-up"),
    "no_effect": Style(label="no effect", color="#5d4a1f", marker="_", symbol="line-ew"),
    "stop_when": Style(label="stop rule", color="#009e73", marker="*", symbol="star"),
    "retain_guard": Style(label="retain guard", color="#d55e00", marker="X", symbol="x"),
    "non_finite": Style(label="diverged", color="#a0429b", marker="P", symbol="cross"),
    "ranking_pruner": Style(label="ranking pruner", color="#56b4e9", marker="s", symbol="square"),
    "trial_timeout": Style(label="time limit", color="#8c564b", marker="h", symbol="hexagon"),
    "failed": Style(label="FAIL", color="#8a8f98", marker="d", symbol="diamond"),
    "other": Style(label="other", color="#5d6470", marker="v", symbol="triangle-down"),
}
TOP: Final = 1.18
"""Upper end of axes of a closure, which is at most 1: room for a marker at 1."""

BEST_COLOR: Final = "#009e73"
LIMIT_COLOR: Final = "#8a8f98"
