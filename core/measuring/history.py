"""A trial's probes so far: judged, and committed before anybody is told."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core.config import ConstraintMetric, SelectionConfig
from core.measuring.extent import Extent, is_overtaken, limits, reaches_nothing, watersheds
from core.measuring.landing import keeps_the_guard, may_land
from core.measuring.probing import Measurement
from core.measuring.reporting import decide
from core.measuring.selection import (
    CLOSURE_AT_TARGET,
    Probe,
    StoppedBy,
    best_probe,
    has_no_effect,
    is_past_target,
    probe_of,
)
from core.metrics.intervals import Sums
from core.metrics.probes import MEASURED, degradation, level
from core.store.durable import append_line, checksum, commit_lines, read_lines
from core.training.lora_format import WEIGHTS_FILE
from core.training.resuming import Reached


class History:
    """The trial's probes so far, judged and committed.

    A line of ``history.jsonl`` is a probe: its metrics, the number of rows of each set that they are of, and
    the steps of those left out before it; in an attempt that went on from a checkpoint also the step of that, as
    ``resumed_at``. A probe that is, or could become, the one that counts also has
    ``rows``, if all were read: of each set ``nll`` (nats, summed over a row) and ``correct`` (greedy
    choices), one number for each row. The line of step 0, the untouched model, has ``tokens``, too, and the
    rows of ``target`` and ``unseen``; and the extent to which the trial is measured. The line of a probe that
    was scaled back onto the target has the ``metrics``, ``intervals`` and ``rows`` measured there as
    ``landed``. The line of a probe whose adapter was saved has the checksum of its weights, as
    ``adapter_sha256``.
    """

    def __init__(
        self,
        selection: SelectionConfig,
        before: Mapping[str, Sums],
        folder: Path | None,
        *,
        extent: Extent,
        started: float,
        warmup_steps: int = 0,
    ) -> None:
        """Begin with no probe.

        Args:
            selection: Rules by which the trial ends, and which probe counts.
            before: Row sums of the untouched model, and of the target.
            folder: Where ``history.jsonl`` is written; nowhere if absent.
            extent: How much is measured.
            started: When the trial began, on the monotonic clock.
            warmup_steps: Optimiser steps over which the rate rises.
        """
        self._selection, self._before = selection, before
        self._baseline = {name: level(sums) for name, sums in before.items()}
        self._path = None if folder is None else folder / "history.jsonl"
        self._weights = None if folder is None else folder / "adapter" / WEIGHTS_FILE
        self._extent, self._started, self._warmup_steps = extent, started, warmup_steps
        self._probes: list[Probe] = []
        self._resumed_at: int | None = None
        self._skipped: tuple[int, ...] = ()
        self._sums: Mapping[str, Sums] = {}
        self._landed_sums: Mapping[str, Sums] = {}

    def reached(self, step: int, steps: Mapping[str, float]) -> Reached:
        """Where the trial is after ``step`` steps, for a checkpoint; asked of the rank that commits."""
        assert self._path is not None
        return Reached(
            step=step,
            seconds=self._seconds(),
            steps=steps,
            skipped=self._skipped,
            lines=read_lines(self._path),
        )

    def go_on_from(self, reached: Reached) -> None:
        """Take over what an interrupted attempt had committed, and commit it as this one's."""
        carried = [{**line, "resumed_at": reached.step} for line in reached.lines]
        self._probes = [probe_of(line) for line in carried if line["step"] > 0]
        self._skipped, self._resumed_at = tuple(reached.skipped), reached.step
        self._started = time.monotonic() - reached.seconds  # not those of steps that were lost
        if self._path is not None:
            commit_lines(self._path, carried)

    def begin(self, *, initial_rms: tuple[float, float], base_checksum: str) -> None:
        """Commit the line of step 0, the untouched model, in place of what an earlier try left."""
        if self._path is None:
            return
        baseline = self._baseline
        rms_a, rms_b = initial_rms
        line = {
            "step": 0,
            "metrics": self._untouched,
            "seconds": self._seconds(),
            "target_nll": baseline["target"].nll,
            "target_accuracy": baseline["target"].accuracy,
            "initial_rms": {"a0": rms_a, "b0": rms_b},
            "base_checksum": base_checksum,
            "extent": asdict(self._extent),
            "rows": {
                name: _plain(self._before[name], with_tokens=True)
                for name in (*MEASURED, "target", "unseen")
            },
        }
        commit_lines(self._path, [line])

    @property
    def _untouched(self) -> dict[str, float]:
        baseline = self._baseline
        return degradation({name: baseline[name] for name in MEASURED}, baseline)

    @property
    def _ends_of_the_way(self) -> dict[str, Mapping[str, float]]:
        target = self._baseline["target"]
        levels = {"forget_nll": target.nll, "forget_accuracy": target.accuracy}
        return {"untouched": self._untouched, "target": levels}

    def leaves_out(self, step: int) -> bool:
        """Whether the probe that is due at ``step`` is left out: it foreseeably decides nothing.

        Never asked about a trial's last probe. It is left out in the eyes of the history, too, which
        remembers the step; two in a row are never left out, nor one at which ``no_effect`` may end the trial.
        """
        if not self._extent.skips or not self._probes or self._skipped:
            return False
        if self._ends_without_effect(self._probes, step):
            return False
        found = reaches_nothing(self._probes, self._selection, **self._ends_of_the_way, ahead=2)
        if found:
            self._skipped = (step,)
        return found

    def values_that_decide(self) -> Iterator[tuple[ConstraintMetric, float]]:
        """Values of the next probe's limited metrics on whose sides something else follows."""
        yield from limits(self._selection)
        if self._extent.skips:
            yield from watersheds(
                self._probes,
                self._selection,
                untouched=self._untouched,
                after_skip=bool(self._skipped),
            )

    def decides(self, step: int, measured: Measurement) -> bool:
        """Whether a probe with these metrics would end the trial, or be the best so far: then all rows are read.

        So they are from where ``drop_at_target`` is a damage: it is made of them. Where the last probe counts,
        whichever it is, none before it is the best; nor is one that the next foreseeably betters. That the
        probe is the last of the budget is not asked here.
        """
        if self._selection.is_minimized and measured.metrics["forget_closure"] >= CLOSURE_AT_TARGET:
            return True
        probe = self._judged(step, measured, is_last=False)
        series = [*self._probes, probe]
        return (
            probe.stopped_by is not None
            or decide(series, self._selection).stops
            or (self._selection.select != "last" and best_probe(series, self._selection) is probe)
        )

    def judge(self, step: int, measured: Measurement, *, is_last: bool) -> Probe:
        """Make the probe of ``step`` and decide whether the trial ends with it by its own rules."""
        probe = self._judged(step, measured, is_last=is_last)
        self._probes.append(probe)
        self._sums, self._skipped = measured.sums, ()
        return probe

    def _judged(self, step: int, measured: Measurement, *, is_last: bool) -> Probe:
        metrics = measured.metrics
        probe = Probe(
            step=step,
            metrics=metrics,
            seconds=self._seconds(),
            intervals=measured.intervals,
            skipped=self._skipped,
            n_rows=measured.n_rows,
            resumed_at=self._resumed_at,
        )
        stopped_by: StoppedBy | None = "budget" if is_last else None
        rule = self._selection.past_target
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
        elif not is_last and self._ends_without_effect(probes, step):
            stopped_by = "no_effect"
        if stopped_by is not None or not self._extent.skips:
            return replace(probe, stopped_by=stopped_by)
        overtaken = is_overtaken(probes, self._selection, **self._ends_of_the_way)
        return replace(probe, is_overtaken=overtaken)

    def _ends_without_effect(self, probes: Sequence[Probe], step: int) -> bool:
        rule = self._selection.no_effect
        return rule is not None and has_no_effect(
            probes,
            self._selection,
            rule,
            step=step,
            target_nll=self._baseline["target"].nll,
            warmup_steps=self._warmup_steps,
        )

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
            n_rows=measured.n_rows,
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
        """Put the probe's line on disk; its adapter, if it is the best, is there before."""
        if self._path is None or self._weights is None:
            return
        is_best = self.is_best(probe)
        line: dict[str, Any] = {
            "step": probe.step,
            "metrics": dict(probe.metrics),
            "seconds": probe.seconds,
            "is_best": is_best,
            "stopped_by": probe.stopped_by,
            "intervals": {name: list(ends) for name, ends in probe.intervals.items()},
            "n_rows": dict(probe.n_rows),
            "skipped": list(probe.skipped),
            "is_overtaken": probe.is_overtaken,
        }
        if probe.resumed_at is not None:
            line["resumed_at"] = probe.resumed_at
        if self._sums and (is_best or self.best is None):
            line["rows"] = _plain_rows(self._sums)
        if is_best and self._weights.is_file():
            line["adapter_sha256"] = checksum(self._weights)
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
