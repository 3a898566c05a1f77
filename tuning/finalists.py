"""The best trials of a sweep on the split that neither losses nor probes saw, several at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import TrialConfig
from tuning.apart import several_ranks
from tuning.config import SweepSpec
from tuning.events import EventLog, Reporting
from tuning.handing_out import HandedOut
from tuning.ledger import Ledger
from tuning.records import TrialRecord
from tuning.space import bind

Work = tuple[int, TrialConfig, Path]
"""Number, configuration and adapter of a trial."""


def report_finalists(
    finalists: Sequence[TrialRecord],
    *,
    spec: SweepSpec,
    run_dir: Path,
    ledger: Ledger,
    log: EventLog,
    handed_out: HandedOut | None,
    at_a_time: int,
) -> None:
    """Measure those that were not measured yet; each is in the ledger as soon as it is measured.

    Args:
        finalists: Trials, the best first.
        spec: The sweep.
        run_dir: Its run folder.
        ledger: Takes the metrics.
        log: Is told which trials are measured.
        handed_out: Prepared files that nodes may lack.
        at_a_time: Ranks that fit.
    """
    work = [
        (t.number, bind(spec, t.params, where=f"trial {t.number}"), run_dir / t.adapter)
        for t in finalists
        if t.adapter is not None and not ledger.has_report_metrics(t.number)
    ]
    if not work:
        return
    log.emit(Reporting(numbers=tuple(number for number, *_ in work)))
    with several_ranks(spec, min(at_a_time, len(work)), handed_out=handed_out) as call_for_each:
        for number, metrics, intervals in call_for_each(_measured, work):
            ledger.set_report_metrics(number, metrics, intervals=intervals)


def _measured(
    warm: Any, group: Any, work: Work
) -> tuple[int, dict[str, float], dict[str, tuple[float, float]]]:
    """Runs on a rank: number, metrics and their intervals."""
    from core.worker import report_measurement

    number, trial, adapter = work
    found = report_measurement(trial, adapter.resolve(), warm=warm, group=group)
    return number, dict(found.metrics), dict(found.intervals)
