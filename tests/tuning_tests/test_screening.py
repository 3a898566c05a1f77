"""What a worker reports that is no number ends its trial with the reason: never running, never the best, told once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from analytic_study import outcome_of, probe, run_trial, spec_of, study_in
from driven_sweep import unsynced
from optuna.trial import FrozenTrial

from core.measuring.selection import Probe
from core.store.durable import append_line
from tuning.concluding import reconcile
from tuning.dispatcher import Dispatcher
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.screening import probe_problem

OBJECTIVE = "forget_closure"
NUMBERS = [math.nan, math.inf, -math.inf]
NO_NUMBERS = [None, "0.9", "", [0.9], [0.9, 0.9], [], {"value": 0.9}, True, 1j]


def with_metrics(changes: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> Probe:
    """The last probe of a trial, with some metrics replaced or left out."""
    whole = probe(1, 0.9, stopped_by="budget")
    metrics = {k: v for k, v in whole.metrics.items() if k not in without}
    return replace(whole, metrics=metrics | dict(changes))


def driven(tmp_path: Path, reported: Sequence[Probe]) -> list[FrozenTrial]:
    """A sweep whose trials report a probe each, after a good trial 0, and before a good one: how they ended."""
    n_trials = len(reported) + 2
    spec = spec_of(budget={"trials": n_trials, "max_steps": 1})
    with unsynced():
        ledger = Ledger(tmp_path, spec, create=True)
        run_trial(ledger, spec, lambda _: 0.2)
        log = EventLog(tmp_path / "events.jsonl", Silent())
        dispatcher = Dispatcher(spec, tmp_path, ledger, log, target=n_trials)
        for made in (*reported, probe(1, 0.1, stopped_by="budget")):
            assignment = dispatcher.next()
            assert assignment is not None
            saved = assignment.folder / "adapter" / "config.json"
            saved.parent.mkdir(parents=True)
            saved.touch()
            assert dispatcher.take(assignment.number, made), "the trial ends with it"
            dispatcher.finish(assignment.number)
    assert dispatcher.is_done
    study = study_in(tmp_path)
    assert study.best_trial.number == 0
    assert study.trials[-1].state.name == "COMPLETE"
    return study.trials[1:-1]


def test_an_objective_or_a_limit_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    bad = [(metric, value) for metric in (OBJECTIVE, "retain_drop") for value in NO_NUMBERS]
    told = driven(tmp_path, [with_metrics({metric: value}) for metric, value in bad])
    for (metric, value), trial in zip(bad, told, strict=True):
        said = f"the probe at step 1 cannot be judged: {metric} must be one number, got {value!r}"
        assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", said)


def test_a_metric_that_is_missing_fails_the_trial(tmp_path: Path) -> None:
    needed = (OBJECTIVE, "retain_drop", "general_drop", "forget_nll")
    told = driven(tmp_path, [with_metrics({}, without=(metric,)) for metric in needed])
    for metric, trial in zip(needed, told, strict=True):
        assert trial.state.name == "FAIL" and f"it lacks {metric}" in trial.user_attrs["reason"]


def test_a_number_that_is_not_finite_prunes_the_trial_with_the_reason(tmp_path: Path) -> None:
    bad = [(m, value) for m in (OBJECTIVE, "retain_drop", "forget_nll") for value in NUMBERS]
    told = driven(tmp_path, [with_metrics({m: value, OBJECTIVE: value}) for m, value in bad])
    for (_, value), trial in zip(bad, told, strict=True):
        assert trial.state.name == "PRUNED" and str(value) in trial.user_attrs["reason"]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_an_objective_that_is_not_finite_prunes_whatever_ended_the_trial(
    tmp_path: Path, value: float
) -> None:
    for stopped_by in ("budget", "past_target", "no_effect", "stop_when"):
        last = replace(with_metrics({OBJECTIVE: value}), stopped_by=stopped_by)
        outcome = outcome_of(spec_of(), [last])
        assert (outcome.state, outcome.stopped_by, outcome.feasible) == (
            "PRUNED",
            "non_finite",
            False,
        )
        assert outcome.reason == f"forget_closure is {value} at step 1: no number to judge it by"
        assert math.isfinite(outcome.value)


def test_what_was_committed_is_screened_when_it_is_adopted(tmp_path: Path) -> None:
    spec = spec_of(budget={"trials": 1, "max_steps": 1})
    ledger = Ledger(tmp_path, spec, create=True)
    log = EventLog(tmp_path / "events.jsonl", Silent())
    assignment = Dispatcher(spec, tmp_path, ledger, log, target=1).next()
    assert assignment is not None
    line = {"step": 1, "metrics": with_metrics({}, without=(OBJECTIVE,)).metrics}
    line |= {"seconds": 1.0, "stopped_by": "budget"}
    append_line(assignment.folder / "history.jsonl", line)
    again = Ledger(tmp_path, spec, create=False)
    reconcile(spec, tmp_path, again, log)
    told = study_in(tmp_path).trials[0]
    assert told.state.name == "FAIL" and "it lacks forget_closure" in told.user_attrs["reason"]


@pytest.mark.parametrize("step", [0, -1, "1", None, 1.0, True])
def test_a_step_is_a_positive_integer(step: Any) -> None:
    selection = spec_of().trial_selection()
    assert "a probe's step must be a positive integer" in str(
        probe_problem(replace(probe(1, 0.5), step=step), selection)
    )


def test_what_was_landed_on_is_screened_too() -> None:
    selection = spec_of().trial_selection()
    landed = replace(probe(2, 0.9), landed=with_metrics({OBJECTIVE: None}))
    assert probe_problem(probe(2, 0.9), selection) is None
    assert "forget_closure must be one number, got None" in str(probe_problem(landed, selection))


# Told once


def test_the_ledger_itself_tells_finite_numbers_only(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    done = [probe(1, 0.4, stopped_by="budget")]
    ledger.report(number, ledger.begin_attempt(number), done)
    outcome = outcome_of(spec, done)
    unfit: Any
    for unfit in (*NUMBERS, *NO_NUMBERS):
        for other in (replace(outcome, value=unfit), replace(outcome, violations={"m": unfit})):
            with pytest.raises(ValueError, match=r"one finite number is expected, got"):
                ledger.finish(number, other, adapter=None, duration_s=1.0)
    assert study_in(tmp_path).trials[number].state.name == "RUNNING"


def test_a_repetition_with_other_values_is_an_error(tmp_path: Path) -> None:
    spec = spec_of()
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    done = [probe(1, 0.4, stopped_by="budget")]
    ledger.report(number, ledger.begin_attempt(number), done)
    outcome = outcome_of(spec, done)
    ledger.finish(number, outcome, adapter="a", duration_s=1.0)
    before = study_in(tmp_path).trials[number]
    ledger = Ledger(tmp_path, spec, create=False)
    ledger.finish(number, outcome, adapter="a", duration_s=2.0)
    for other, said in (
        (
            replace(outcome, value=0.5),
            r"trial 0 was told with value 0\.4 already, cannot become 0\.5",
        ),
        (replace(outcome, step=2), "trial 0 was told with step 1 already"),
        (replace(outcome, feasible=False), "trial 0 was told with feasible True already"),
    ):
        with pytest.raises(ValueError, match=said):
            ledger.finish(number, other, adapter="a", duration_s=1.0)
    assert study_in(tmp_path).trials[number] == before
