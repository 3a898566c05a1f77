"""The seam between a trial and whoever runs it: metrics out, a decision back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.config import SelectionConfig
from core.measuring.selection import GuardVerdict, Probe, guard_verdict, guarded_series


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Go on, or stop for a reason."""

    verdict: GuardVerdict | None = None

    @property
    def stops(self) -> bool:
        """Whether the trial ends here."""
        return self.verdict is not None


class Reporter(Protocol):
    """Receives each probe of a trial and says whether to go on."""

    def report(self, probe: Probe) -> Decision:
        """Take a probe, return the decision."""
        ...


@dataclass
class GuardReporter:
    """Decides by the trial's own retain guard: what a trial outside a sweep obeys."""

    selection: SelectionConfig
    _series: list[Probe] = field(default_factory=list)

    def report(self, probe: Probe) -> Decision:
        """Apply the retain guard to the probes so far."""
        self._series.append(probe)
        return decide(self._series, self.selection)


def decide(probes: Sequence[Probe], selection: SelectionConfig) -> Decision:
    """The retain guard's decision after the last of ``probes`` (step 0 is left out)."""
    if selection.retain_guard is None:
        return Decision()
    series = guarded_series([p for p in probes if p.step > 0])
    return Decision(verdict=guard_verdict([*series.values()], selection.retain_guard))
