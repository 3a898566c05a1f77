"""Importances of the searched fields, by both evaluators side by side."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tuning.plots.scales import scales
from tuning.run import Run

if TYPE_CHECKING:
    from tuning.importance import Importances

TOO_FEW: Final = "too few finished trials, or all are worth the same"

Share = tuple[float, float, float]
"""An importance, and the lower and upper end of its interval."""


@dataclass(frozen=True, kw_only=True)
class ImportanceBar:
    """One searched field: its share by either evaluator."""

    name: str
    ped_anova: Share
    fanova: Share


@dataclass(frozen=True, kw_only=True)
class ImportancesData:
    """Fields, the most important first by PED-ANOVA; none where trials say nothing of them."""

    bars: tuple[ImportanceBar, ...]
    n_trials: int


def importances_data(run: Run, found: "Importances | None") -> ImportancesData:
    """Importances as bars.

    Args:
        run: The run.
        found: What the trials say; ``None`` if nothing.
    """
    if found is None:
        return ImportancesData(bars=(), n_trials=0)
    names = {s.path: s.name for s in scales(run.spec.space)}
    ped, fanova = found.ped_anova, found.fanova
    return ImportancesData(
        bars=tuple(
            ImportanceBar(
                name=names[path],
                ped_anova=(share.value, share.low, share.high),
                fanova=(fanova[path].value, fanova[path].low, fanova[path].high),
            )
            for path, share in ped.items()
        ),
        n_trials=len(found.trials),
    )
