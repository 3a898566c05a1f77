"""A trial's probes so far: judged, and committed before anybody is told."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config import SelectionConfig
from core.measuring.landing import keeps_the_guard, may_land
from core.measuring.probing import Measurement
from core.measuring.selection import (
    Probe,
    StoppedBy,
    best_probe,
    has_no_effect,
    is_past_target,
)
from core.metrics.intervals import Sums
from core.metrics.probes import MEASURED, degradation, level
from core.store.durable import append_line


class History:
    """The trial's probes so far, judged and committed.

    A line of ``history.jsonl`` is a probe; a probe that is, or could become, the one that counts also has
    ``rows``: of each set ``nll`` (nats, summed over a row) and ``correct`` (greedy choices), one number for
    each row. The line of step 0, the untouched model, has ``tokens``, too, and the rows of ``target``
    and ``unseen``. The line of a probe that was scaled back onto the target has the ``metrics``, ``intervals``
    and ``rows`` measured there as ``landed``.
    """

    def __init__(
        self,
        selection: SelectionConfig,
        before: Mapping[str, Sums],
        folder: Path | None,
        *,
        started: float,
        warmup_steps: int = 0,
    ) -> None:
        """Begin with no probe.

        Args:
            selection: Rules by which the trial ends, and which probe counts.
            before: Row sums of the untouched model, and of the target.
            folder: Where ``history.jsonl`` is written; nowhere if absent.
            started: When the trial began, on the monotonic clock.
            warmup_steps: Optimiser steps over which the rate rises.
        """
        self._selection, self._before = selection, before
        self._baseline = {name: level(sums) for name, sums in before.items()}
        self._path = None if folder is None else folder / "history.jsonl"
        self._started, self._warmup_steps = started, warmup_steps
        self._probes: list[Probe] = []
        self._sums: Mapping[str, Sums] = {}
        self._landed_sums: Mapping[str, Sums] = {}

    def begin(self, *, initial_rms: tuple[float, float], base_checksum: str) -> None:
        """Commit the line of step 0: the untouched model."""
        if self._path is None:
            return
        baseline = self._baseline
        rms_a, rms_b = initial_rms
        line = {
            "step": 0,
            "metrics": degradation({n: baseline[n] for n in MEASURED}, baseline),
            "seconds": self._seconds(),
            "target_nll": baseline["target"].nll,
            "target_accuracy": baseline["target"].accuracy,
            "initial_rms": {"a0": rms_a, "b0": rms_b},
            "base_checksum": base_checksum,
            "rows": {
                name: _plain(self._before[name], with_tokens=True)
                for name in (*MEASURED, "target", "unseen")
            },
        }
        append_line(self._path, line)

    def judge(self, step: int, measured: Measurement, *, is_last: bool) -> Probe:
        """Make the probe of ``step`` and decide whether the trial ends with it by its own rules."""
        metrics, self._sums = measured.metrics, measured.sums
        probe = Probe(
            step=step, metrics=metrics, seconds=self._seconds(), intervals=measured.intervals
        )
        stopped_by: StoppedBy | None = "budget" if is_last else None
        rule, idle = self._selection.past_target, self._selection.no_effect
        probes, target_nll = [*self._probes, probe], self._baseline["target"].nll
        if not math.isfinite(metrics["forget_nll"]):
            stopped_by = "non_finite"
        elif rule is not None and is_past_target(
            probes, self._selection, rule, target_nll=target_nll
        ):
            stopped_by = "past_target"
        elif self._selection.stop_when and all(
            metrics[rule.metric] <= rule.at_most for rule in self._selection.stop_when
        ):
            stopped_by = "stop_when"
        elif (
            idle is not None
            and not is_last
            and has_no_effect(
                probes,
                self._selection,
                idle,
                target_nll=target_nll,
                warmup_steps=self._warmup_steps,
            )
        ):
            stopped_by = "no_effect"
        probe = replace(probe, stopped_by=stopped_by)
        self._probes.append(probe)
        return probe

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes so far."""
        return tuple(self._probes)

    @property
    def may_land(self) -> bool:
        """Whether the trial ends with the newest probe and may be scaled back onto its target."""
        target_nll = self._baseline["target"].nll
        return may_land(self._probes, self._selection, target_nll=target_nll)

    def land(self, measured: Measurement) -> Probe:
        """The newest probe with what was measured of it on the target, if that keeps the guard's limits."""
        probe = self._probes[-1]
        landed = replace(
            probe,
            metrics=measured.metrics,
            intervals=measured.intervals,
            seconds=self._seconds(),
        )
        if keeps_the_guard(landed, self._probes, self._selection):
            self._landed_sums = measured.sums
            self._probes[-1] = replace(probe, landed=landed)
        return self._probes[-1]

    def is_best(self, probe: Probe) -> bool:
        """Whether the newest probe, or what it landed on, is the one that counts so far."""
        best = self.best
        return best is not None and (best is probe or best is probe.landed)

    @property
    def best(self) -> Probe | None:
        """The probe that counts so far."""
        return best_probe(self._probes, self._selection)

    def commit(self, probe: Probe) -> None:
        """Put the probe's line on disk."""
        if self._path is None:
            return
        is_best = self.is_best(probe)
        line: dict[str, Any] = {
            "step": probe.step,
            "metrics": dict(probe.metrics),
            "seconds": probe.seconds,
            "is_best": is_best,
            "stopped_by": probe.stopped_by,
            "intervals": {name: list(ends) for name, ends in probe.intervals.items()},
        }
        if is_best or self.best is None:
            line["rows"] = _plain_rows(self._sums)
        if probe.landed is not None:
            line["landed"] = {
                "metrics": dict(probe.landed.metrics),
                "seconds": probe.landed.seconds,
                "intervals": {name: list(ends) for name, ends in probe.landed.intervals.items()},
                "rows": _plain_rows(self._landed_sums),
            }
        append_line(self._path, line)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)


def _plain_rows(sums: Mapping[str, Sums]) -> dict[str, Any]:
    return {name: _plain(of_rows, with_tokens=False) for name, of_rows in sums.items()}


def _plain(sums: Sums, *, with_tokens: bool) -> dict[str, list[float] | list[int]]:
    """Row sums as short JSON: a ten-thousandth of a nat, and counts."""
    nll, correct, tokens = sums.T
    found: dict[str, list[float] | list[int]] = {
        "nll": nll.round(4).tolist(),
        "correct": correct.astype(int).tolist(),
    }
    return found | ({"tokens": tokens.astype(int).tolist()} if with_tokens else {})
