"""Measure a model on one part of the data: at each probe of a trial, and once more when it is finished."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from core.config import ConstraintMetric, SelectionConfig, TrialConfig
from core.data.tokens import TokenSplits, measured_part
from core.errors import ModelError
from core.measuring.baselines import baseline_strength, baseline_sums, rows_beside
from core.measuring.calibration import Calibration, Scaled
from core.measuring.extent import Extent
from core.measuring.landing import landing_factor, share_of_the_path
from core.measuring.meter import Meter
from core.measuring.selection import CLOSURE_AT_TARGET, Probe, damaged_metrics, drop_at_target
from core.measuring.staged import Reading, bounds
from core.metrics.intervals import WORST_DAMAGE, Interval, Sums, intervals
from core.metrics.nested import nested_order
from core.metrics.probes import MEASURED, Levels, degradation, level
from core.metrics.rows import ROW_METRICS
from core.model.loading import Forward, forward_of
from core.training.ranks import Group
from core.training.warm import Warm

AT_UTILITY = "forget_closure_at_utility"

ProbedPart = Literal["probe", "report"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured of a model on one part of the data.

    Attributes:
        metrics: Value by metric.
        intervals: 95 % interval of each closure and drop that is finite.
        n_rows: Rows of each set that were read.
        sums: Row sums of forget, retain and general set, from which both follow; empty if not all rows
            were read.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n_rows: Mapping[str, int]
    sums: Mapping[str, Sums]


@dataclass(frozen=True, kw_only=True)
class Probing:
    """Measures on the probe part during a trial, or on the report part when it is finished.

    Attributes:
        selection: Which metrics a trial's rules look at.
        meter: Measures.
        data: Rows.
        part: ``probe`` or ``report``.
        before: Row sums under the target model; see :func:`~core.measuring.baselines.baseline_sums`.
        rows_of: Set that the rows of ``before["target"]`` and ``before["unseen"]`` are of, ``approximate`` or
            ``forget``.
        calibration: Comparison at equal utility, where there is one.
        extent: How much a probe reads.
    """

    selection: SelectionConfig
    meter: Meter
    data: TokenSplits
    part: ProbedPart
    before: Mapping[str, Sums]
    rows_of: Mapping[str, str]
    calibration: Calibration | None
    extent: Extent

    @property
    def baseline(self) -> Levels:
        """Levels of the target model, and the target."""
        return {name: level(sums) for name, sums in self.before.items()}

    def during_trial(
        self,
        network: nn.Module,
        scaled: Scaled,
        *,
        is_last: bool,
        limits: Iterable[tuple[ConstraintMetric, float]],
        decides: Callable[[Measurement], bool],
    ) -> Measurement:
        """A probe: the metrics that every trial has, and those that its configuration asks for.

        An adaptive probe reads the forget set and, stage by stage, more retain and general rows, until the
        interval of each limited drop excludes what it is compared with. What these rows say is the measurement,
        unless more hangs on it: then the rest is read, too. All ranks read the same rows, for row sums are the
        same bits on each.

        Args:
            network: The model being trained.
            scaled: Scales what was trained of it.
            is_last: Whether it is the trial's last probe, which reads all rows.
            limits: Values of limited metrics of which it must be sure on which side it is.
            decides: Whether more hangs on a probe that measures so.
        """
        forward = forward_of(network)
        stops = self._stop_metrics(network)
        if self.extent.adaptive and not is_last and self.calibration is None:
            reading = self._reading(forward, limits)
            reading.until_decided()
            found = self._with(stops, self._estimated(reading))
            if reading.is_whole or not decides(found):
                return found
            reading.rest()
            return self._with(stops, self._estimated(reading))
        whole = self._measured(self.meter.sums(forward, self.data, part=self.part))
        if self.calibration is None:
            return self._with(stops, whole)
        factor, sums = self.calibration.scaled_back(forward, whole.sums, scaled)
        return at_utility(whole, self._measured(sums), factor, stops)

    def on_target(
        self, network: nn.Module, scaled: Scaled, probes: Sequence[Probe]
    ) -> Measurement | None:
        """A model that is past its target, scaled back onto it; the forget rows alone are read to find out how far.

        Args:
            network: The model being trained.
            scaled: Scales what was trained of it.
            probes: The trial's so far; the last is of this model, with the whole difference.

        Returns:
            The metrics there, with ``landing_factor``; see :func:`~core.measuring.landing.landing_factor`.
            ``None`` if the whole difference is as near to the target.
        """
        forward, found = forward_of(network), dict[float, Sums]()

        def forget_level(factor: float) -> float:
            with scaled(factor):
                found[factor] = self.meter.row_sums(forward, self.data["forget"])
            return level(found[factor]).nll

        before, target = (self.baseline[name].nll for name in ("forget", "target"))
        factor = landing_factor(
            forget_level,
            before=before,
            target=target,
            whole=probes[-1].metrics["forget_nll"],
            first=share_of_the_path(probes, before=before, target=target),
        )
        if factor == 1.0:
            return None
        with scaled(factor):
            sums = {
                name: self.meter.row_sums(forward, self.data[f"{name}_{self.part}"])
                for name in ("retain", "general")
            }
        measured = self._measured({"forget": found[factor], **sums})
        return replace(measured, metrics=dict(measured.metrics) | {"landing_factor": factor})

    def when_finished(self, network: nn.Module, scaled: Scaled) -> Measurement:
        """A saved model, with ``forget_closure_at_utility`` and its ``calibration_factor``.

        Args:
            network: What was saved, loaded.
            scaled: Scales what was trained of it.

        Returns:
            Where equal utility was the objective, what is saved is scaled already and is measured as it
            is.
        """
        forward = forward_of(network)
        whole = self._measured(self.meter.sums(forward, self.data, part=self.part))
        scaled_back, factor = whole, {}
        if self.calibration is not None:
            share, sums = self.calibration.scaled_back(forward, whole.sums, scaled)
            scaled_back, factor = self._measured(sums), {"calibration_factor": share}
        closure = scaled_back.metrics["forget_closure"]
        return replace(
            whole,
            metrics=dict(whole.metrics) | {AT_UTILITY: closure} | factor,
            intervals=dict(whole.intervals) | _renamed(scaled_back, {"forget_closure": AT_UTILITY}),
        )

    def _reading(
        self, forward: Forward, limits: Iterable[tuple[ConstraintMetric, float]]
    ) -> Reading:
        parts = {name: measured_part(name, self.part) for name in MEASURED}
        rows = {name: self.data[part] for name, part in parts.items()}
        return Reading(
            measure=lambda places: self.meter.row_sums(forward, [rows[n][i] for n, i in places]),
            orders={
                name: nested_order(len(rows[name]), self.data.identity[part])
                for name, part in parts.items()
            },
            before=self.before,
            bounds=bounds(limits, self.baseline),
        )

    def _estimated(self, reading: Reading) -> Measurement:
        """What the rows read so far say; with all of them read it is what they are."""
        if reading.is_whole:
            return self._measured(reading.sums)
        before = dict(self.before) | reading.then
        return self._judged(reading.levels(self.baseline), reading.now, before)

    def _with(self, stops: Mapping[str, float], measured: Measurement) -> Measurement:
        return replace(measured, metrics=dict(measured.metrics) | dict(stops))

    def _measured(self, sums: Mapping[str, Sums]) -> Measurement:
        levels = {name: level(of_rows) for name, of_rows in sums.items()}
        return replace(self._judged(levels, sums, self.before), sums=sums)

    def _judged(
        self, levels: Levels, now: Mapping[str, Sums], before: Mapping[str, Sums]
    ) -> Measurement:
        metrics = degradation(levels, self.baseline)
        drops = damaged_metrics(self.selection) if self.selection.is_minimized else ()
        found = intervals(now, before, rows_of=self.rows_of, worst_of=drops)
        if drops:
            metrics["drop_at_target"] = drop_at_target(metrics, self.selection)
            found |= _at_target(metrics, found)
        finite = {
            name: ends for name, ends in found.items() if math.isfinite(metrics.get(name, math.nan))
        }
        n_rows = {name: len(sums) for name, sums in now.items()}
        return Measurement(metrics=metrics, intervals=finite, n_rows=n_rows, sums={})

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
        UserError: As :func:`~core.measuring.baselines.baseline_sums`.
    """
    before = baseline_sums(config, warm, group, part=part)
    baseline = {name: level(sums) for name, sums in before.items()}
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
        before=before,
        rows_of=rows_beside(config),
        calibration=calibration,
        extent=Extent.of(selection, on_gpu=warm.model(config).device.type == "cuda"),
    )


def at_utility(
    whole: Measurement, scaled_back: Measurement, factor: float, stops: Mapping[str, float]
) -> Measurement:
    """A probe of the model scaled back, with what the whole difference would have been beside it."""
    beside = {"forget_closure": "unscaled_forget_closure", "retain_drop": "unscaled_retain_drop"}
    at_factor = {"forget_closure": AT_UTILITY}
    metrics = {new: scaled_back.metrics[old] for old, new in at_factor.items()}
    metrics |= {"calibration_factor": factor}
    metrics |= {new: whole.metrics[old] for old, new in beside.items()}
    found = _renamed(scaled_back, at_factor) | _renamed(whole, beside)
    return Measurement(
        metrics=dict(stops) | dict(scaled_back.metrics) | metrics,
        intervals=dict(scaled_back.intervals) | found,
        n_rows=scaled_back.n_rows,
        sums=scaled_back.sums,
    )


def _at_target(metrics: Mapping[str, float], found: Mapping[str, Interval]) -> dict[str, Interval]:
    """Interval of ``drop_at_target``: the worst damage's on target, else that of ``2 - forget_closure``."""
    if metrics["forget_closure"] >= CLOSURE_AT_TARGET:
        return {"drop_at_target": found[WORST_DAMAGE]} if WORST_DAMAGE in found else {}
    if "forget_closure" not in found:
        return {}
    low, high = found["forget_closure"]
    return {"drop_at_target": (2.0 - high, 2.0 - low)}


def _renamed(measured: Measurement, names: Mapping[str, str]) -> dict[str, Interval]:
    """Intervals of some metrics under other names, as far as there are any."""
    found = measured.intervals
    return {new: found[old] for old, new in names.items() if old in found}
