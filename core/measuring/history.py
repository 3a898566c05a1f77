"""A trial's probes so far: judged, and committed before anybody is told."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from core.config import SelectionConfig
from core.measuring.selection import Probe, StoppedBy, best_probe, is_past_target
from core.metrics.probes import MEASURED, Levels, degradation
from core.store.durable import append_line


class History:
    """The trial's probes so far, judged and committed."""

    def __init__(
        self, selection: SelectionConfig, baseline: Levels, folder: Path | None, *, started: float
    ) -> None:
        """Begin with no probe.

        Args:
            selection: Rules by which the trial ends, and which probe counts.
            baseline: Levels of the untouched model, and the target.
            folder: Where ``history.jsonl`` is written; nowhere if absent.
            started: When the trial began, on the monotonic clock.
        """
        self._selection, self._baseline = selection, baseline
        self._path = None if folder is None else folder / "history.jsonl"
        self._started = started
        self._probes: list[Probe] = []

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
        }
        append_line(self._path, line)

    def judge(self, step: int, metrics: Mapping[str, float], *, is_last: bool) -> Probe:
        """Make the probe of ``step`` and decide whether the trial ends with it by its own rules."""
        probe = Probe(step=step, metrics=metrics, seconds=self._seconds())
        stopped_by: StoppedBy | None = "budget" if is_last else None
        rule = self._selection.past_target
        if not math.isfinite(metrics["forget_nll"]):
            stopped_by = "non_finite"
        elif rule is not None and is_past_target(
            [*self._probes, probe],
            self._selection,
            rule,
            target_nll=self._baseline["target"].nll,
        ):
            stopped_by = "past_target"
        elif self._selection.stop_when and all(
            metrics[rule.metric] <= rule.at_most for rule in self._selection.stop_when
        ):
            stopped_by = "stop_when"
        probe = Probe(step=step, metrics=metrics, seconds=probe.seconds, stopped_by=stopped_by)
        self._probes.append(probe)
        return probe

    def is_best(self, probe: Probe) -> bool:
        """Whether the newest probe is the one that counts so far."""
        return best_probe(self._probes, self._selection) is probe

    def commit(self, probe: Probe) -> None:
        """Put the probe's line on disk."""
        if self._path is not None:
            append_line(
                self._path,
                {
                    "step": probe.step,
                    "metrics": dict(probe.metrics),
                    "seconds": probe.seconds,
                    "is_best": self.is_best(probe),
                    "stopped_by": probe.stopped_by,
                },
            )

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)
