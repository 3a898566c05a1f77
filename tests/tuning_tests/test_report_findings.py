"""Sentences of the report about ranges and trials without effect, and its commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tuning.files import load_sweep
from tuning.report import write_report
from tuning.report.commands import commands
from tuning.report.findings import findings
from tuning.run import Run

Built = Callable[..., Run]


def with_params(run: Run, values: Mapping[int, float]) -> Run:
    """The run as if its trials had had these learning rates, all else equal."""
    trials = tuple(
        replace(t, params={"optimizer.learning_rate": values.get(t.number, 3e-4)})
        for t in run.trials
    )
    return replace(run, trials=trials)


def test_good_trials_at_the_end_of_a_range_are_named(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    good, poor = [(2.8, 0.0, 0.0)] * 6, [(1.2, 0.0, 0.0)] * 6
    run = build_run(scripts=[trial_script(probes=p) for p in [good] * 4 + [poor] * 6])
    inside = {n: 10 ** -(3 + n / 10) for n in range(10)}
    assert findings(with_params(run, inside)) == []
    at_the_end = inside | {0: 9e-3, 1: 9.5e-3, 2: 8e-3}
    assert findings(with_params(run, at_the_end)) == [
        "3 of 4 good trials lie at the upper end of optimizer.learning_rate: widen it (trials 0, 1 and 2)."
    ]


def test_trials_without_effect_are_named(sample_run: Run) -> None:
    stopped = replace(sample_run.trials[7], stopped_by="no_effect")
    doubtful = replace(sample_run.trials[2], value_interval=(-0.1, 0.3))
    sure = replace(sample_run.trials[3], value_interval=(0.1, 0.9))
    trials = (*sample_run.trials[:2], doubtful, sure, *sample_run.trials[4:7], stopped)
    assert findings(replace(sample_run, trials=trials)) == [
        "Trial 7 ended without effect: forgetting stayed within its noise.",
        "Trial 2 cannot be told from the untouched model: the 95 % interval of forget_closure holds 0.",
    ]


@pytest.mark.parametrize("has_best", [True, False])
def test_every_command_is_one_of_the_command_line(has_best: bool, sample_run: Run) -> None:
    from typer.main import get_command

    from tuning.cli import app

    verbs = get_command(app).commands  # type: ignore[attr-defined]  # a group
    first = sample_run.trials[0] if has_best else None
    found = commands(sample_run, first)
    assert len({purpose for purpose, _ in found}) == len(found)
    for _, command in found:
        program, verb, *arguments = shlex.split(command)
        assert program == "unlearn-tune"
        verbs[verb].make_context(verb, arguments)  # refuses what the verb does not know


def test_the_sweep_of_a_report_can_be_launched_again_as_it_was(sample_run: Run) -> None:
    file = write_report(sample_run).with_name("sweep.yaml")
    assert load_sweep(file) == sample_run.spec
    assert any(str(file) in command for _, command in commands(sample_run, None))
