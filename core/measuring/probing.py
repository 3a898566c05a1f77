"""Measure a model on one part of the data: at each probe of a trial, and once more when it is finished."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from core.config import SelectionConfig, TrialConfig
from core.data.tokens import TokenSplits
from core.errors import ModelError
from core.measuring.baselines import baseline_levels, baseline_strength
from core.measuring.calibration import Calibration
from core.measuring.meter import Meter
from core.metrics.probes import Levels, degradation
from core.metrics.rows import ROW_METRICS
from core.model.loading import forward_of
from core.training.ranks import Group
from core.training.warm import Warm

AT_UTILITY = "forget_closure_at_utility"

ProbedPart = Literal["probe", "report"]

Scaled = Callable[[float], AbstractContextManager[None]]
"""Makes a trained difference count a factor within a context."""


@dataclass(frozen=True, kw_only=True)
class Probing:
    """Measures on the probe part during a trial, or on the report part when it is finished.

    Attributes:
        selection: Which metrics a trial's rules look at.
        meter: Measures.
        data: Rows.
        part: ``probe`` or ``report``.
        baseline: Levels of the target model; see :func:`~core.measuring.baselines.baseline_levels`.
        calibration: Comparison at equal utility, where there is one.
    """

    selection: SelectionConfig
    meter: Meter
    data: TokenSplits
    part: ProbedPart
    baseline: Levels
    calibration: Calibration | None

    def during_trial(self, network: nn.Module, scaled: Scaled) -> dict[str, float]:
        """Metrics of a probe: those that every trial has, and those that its configuration asks for.

        Args:
            network: The model being trained.
            scaled: Scales what was trained of it.
        """
        forward = forward_of(network)
        levels = self.meter.levels(forward, self.data, part=self.part)
        stops = self._stop_metrics(network)
        if self.calibration is None:
            return degradation(levels, self.baseline) | stops
        return stops | self.calibration.metrics(forward, levels, scaled)

    def when_finished(self, network: nn.Module, scaled: Scaled) -> dict[str, float]:
        """Metrics of a saved model, and ``forget_closure_at_utility`` with its ``calibration_factor``.

        Args:
            network: What was saved, loaded.
            scaled: Scales what was trained of it.

        Returns:
            Where equal utility was the objective, what is saved is scaled already and is measured as it
            is.
        """
        forward = forward_of(network)
        levels = self.meter.levels(forward, self.data, part=self.part)
        metrics = degradation(levels, self.baseline)
        if self.calibration is None:
            return metrics | {AT_UTILITY: metrics["forget_closure"]}
        found = self.calibration.metrics(forward, levels, scaled)
        return metrics | {name: found[name] for name in (AT_UTILITY, "calibration_factor")}

    def _stop_metrics(self, network: nn.Module) -> dict[str, float]:
        """The forget metrics that ``selection.stop_when`` names."""
        rows, found = self.data["forget"], {}
        for name in (rule.metric for rule in self.selection.stop_when):
            if name in ROW_METRICS:
                found[name] = self.meter.row_mean(forward_of(network), rows, name)
                continue
            n = int(name.removeprefix("el_"))
            value = self.meter.mean_extraction_likelihood(network, rows, n=n)
            if value is None:
                raise ModelError(
                    f"selection.stop_when: el_{n} needs forget rows of more than {n} tokens, the longest has "
                    f"{max(len(row.ids) for row in rows)}; raise data.forget.max_tokens or take a smaller n"
                )
            found[name] = value
        return found


def probing(config: TrialConfig, warm: Warm, group: Group, *, part: ProbedPart) -> Probing:
    """How a trial is measured on a part, with what the target model scores there.

    Call it while nothing is attached to the target model: its numbers are measured, or found in the cache.

    Raises:
        UserError: As :func:`~core.measuring.baselines.baseline_levels`.
    """
    baseline = baseline_levels(config, warm, group, part=part)
    selection, data = config.selection, warm.data(config)
    meter = Meter(warm.model(config), group, batch_size=config.batch.probe_batch_size)
    calibration = None
    # a trial is scaled where that is the objective; what it saves then is scaled already
    if (selection.metric == AT_UTILITY) == (part == "probe"):
        utility = baseline["retain"].accuracy
        if selection.utility == "retain_extraction_strength":
            utility = baseline_strength(config, warm, group, part=part)
        calibration = Calibration(
            selection=selection,
            meter=meter,
            data=data,
            part=part,
            baseline=baseline,
            original_utility=utility,
        )
    return Probing(
        selection=selection,
        meter=meter,
        data=data,
        part=part,
        baseline=baseline,
        calibration=calibration,
    )
