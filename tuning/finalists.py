"""The end of a sweep: its best trials on the split that neither losses nor probes saw and in suites, and samples."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.config import TrialConfig
from tuning.apart import CallForEach, several_ranks
from tuning.config import SweepSpec
from tuning.damage import whole_samples
from tuning.events import EventLog, Reporting
from tuning.finalist_evaluation import Work, evaluate_finalists
from tuning.handing_out import HandedOut
from tuning.ledger import Ledger
from tuning.ranking import by_probes
from tuning.records import TrialRecord
from tuning.run import Run, load_run
from tuning.samples import SAMPLES_FILE, write_samples
from tuning.space import bind
from tuning.storage.home import Home, adapter_of
from tuning.storage.keeping import Keeper


def finish(
    spec: SweepSpec,
    run_dir: Path,
    ledger: Ledger,
    log: EventLog,
    *,
    keeper: Keeper,
    handed_out: HandedOut | None,
    at_a_time: int,
) -> None:
    """Measure and evaluate finalists that were not yet, several at a time, then let the best trial write samples.

    Args:
        spec: The sweep.
        run_dir: Its run folder.
        ledger: Takes the metrics of each finalist as soon as it is measured.
        log: Is told which trials are measured.
        keeper: Knows where adapters are, and keeps what is found.
        handed_out: Prepared files that nodes may lack.
        at_a_time: Ranks that fit.
    """
    run = load_run(run_dir)
    finalists = [
        _work(spec, keeper, t)
        for t in by_probes(run.trials)[: spec.budget.finalists]
        if t.adapter is not None
    ]
    to_measure = [one for one in finalists if not ledger.has_report_metrics(one[0])]
    to_evaluate = [
        one for one in finalists if spec.evaluation.all_suites and not ledger.has_evaluation(one[0])
    ]
    if to_measure or (not to_evaluate and _lacks_samples(run)):
        n = min(at_a_time, max(1, len(to_measure)))
        with several_ranks(spec, n, handed_out=handed_out) as call:
            if to_measure:
                log.emit(Reporting(numbers=tuple(number for number, *_ in to_measure)))
            for number, metrics, intervals in call(_measured, to_measure):
                ledger.set_report_metrics(number, metrics, intervals=intervals)
                keeper.promise()
            if not to_evaluate:
                _sample(spec, run_dir, keeper, call)
    if to_evaluate:  # on ranks of their own: a suite holds a model by itself
        n = min(at_a_time, len(to_evaluate))
        with several_ranks(spec, n, handed_out=handed_out) as call:
            evaluate_finalists(spec, to_evaluate, ledger, log, keeper, call)
            _sample(spec, run_dir, keeper, call)


def _sample(spec: SweepSpec, run_dir: Path, keeper: Keeper, call: CallForEach) -> None:
    run = load_run(run_dir)  # finalists' metrics may have changed which trial is the best
    first = run.best
    if first is None or not _lacks_samples(run):
        return
    _, trial, home = _work(spec, keeper, first)
    for rows in call(_continued, [(trial, home, spec.budget.samples)]):
        write_samples(run_dir, first.number, first.attempt, rows)
        keeper.promise(SAMPLES_FILE)


def _lacks_samples(run: Run) -> bool:
    """Whether the best trial is to write samples, and those that are there are not its own."""
    first, budget = run.best, run.spec.budget
    if first is None or first.adapter is None or 0 in (budget.finalists, budget.samples):
        return False
    found = whole_samples(run)  # a damaged file is made anew
    return found is None or (found.trial, found.attempt) != (first.number, first.attempt)


def _work(spec: SweepSpec, keeper: Keeper, trial: TrialRecord) -> Work:
    bound = bind(spec, trial.params, where=f"trial {trial.number}")
    return trial.number, bound, keeper.kept(trial.number, trial.attempt)


def _measured(
    warm: Any, group: Any, work: Work
) -> tuple[int, dict[str, float], dict[str, tuple[float, float]]]:
    """Runs on a rank: number, metrics and their intervals."""
    from core.worker import report_measurement

    number, trial, home = work
    with adapter_of(home) as adapter:
        found = report_measurement(trial, adapter, warm=warm, group=group)
    return number, dict(found.metrics), dict(found.intervals)


def _continued(warm: Any, group: Any, work: tuple[TrialConfig, Home, int]) -> list[dict[str, str]]:
    """Runs on a rank: what the trial and the untouched model write."""
    from core.suites.samples import continued_rows

    trial, home, n_rows = work
    with adapter_of(home) as adapter:
        return [asdict(row) for row in continued_rows(trial, adapter, warm=warm, n_rows=n_rows)]
