"""What a person sees while a sweep runs, from events made by hand and a clock that is set."""

import re
from typing import Any

import pytest

from core.measuring.selection import Probe
from tuning.config import SweepSpec
from tuning.events import (
    Prepared,
    Reporting,
    TrialBegan,
    TrialBroke,
    TrialEnded,
    TrialProbed,
    Warned,
)
from tuning.objective import Outcome
from tuning.progress import Progress
from tuning.run import Run


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spec(sample_run: Run) -> SweepSpec:
    return sample_run.spec


def began(number: int, attempt: int = 1) -> TrialBegan:
    return TrialBegan(number=number, attempt=attempt, params={"adapter.rank": 8})


def ended(number: int, *, adopted: bool = False, **changes: Any) -> TrialEnded:
    values: dict[str, Any] = {
        "state": "COMPLETE",
        "stopped_by": "budget",
        "reason": "reached its budget of 6 steps",
        "value": 0.5,
        "feasible": True,
        "step": 4,
        "metrics": {},
        "violations": {},
        "steps": 6,
    }
    return TrialEnded(number=number, outcome=Outcome(**(values | changes)), adopted=adopted)


def test_time_left_shares_the_work_among_the_trials_that_run_side_by_side(
    spec: SweepSpec, clock: Clock
) -> None:
    progress = Progress(spec, target=6, clock=clock)
    assert progress.eta_s() is None
    for number in (0, 1):
        progress.show(began(number))
    clock.at = 10.0
    progress.show(ended(0))
    assert progress.eta_s() == 10.0 * (4 + 0.5) / 2
    progress.show(began(2))
    assert progress.eta_s() == 10.0 * (3 + 2 * 0.5) / 2
    clock.at = 15.0
    assert progress.eta_s() == 10.0 * (3 + 2 * 0.5) / 2  # waiting does not make it longer


def test_time_left_counts_trials_of_earlier_sessions_and_adopted_ones_as_done(
    spec: SweepSpec, clock: Clock
) -> None:
    progress = Progress(spec, target=6, done=2, clock=clock)
    progress.show(ended(2, adopted=True))
    assert progress.eta_s() is None
    progress.show(began(3))
    clock.at = 8.0
    progress.show(ended(3))
    assert progress.eta_s() == 8.0 * 2


def test_another_attempt_is_timed_from_its_own_beginning(spec: SweepSpec, clock: Clock) -> None:
    progress = Progress(spec, target=2, clock=clock)
    progress.show(began(0))
    clock.at = 100.0
    progress.show(TrialBroke(number=0, attempt=1, reason="out of memory", is_final=False))
    progress.show(began(0, attempt=2))
    clock.at = 104.0
    progress.show(ended(0))
    assert progress.eta_s() == 4.0


def test_no_time_is_left_when_every_trial_ended_or_failed(spec: SweepSpec, clock: Clock) -> None:
    progress = Progress(spec, target=2, done=1, clock=clock)
    progress.show(began(1))
    progress.show(TrialBroke(number=1, attempt=3, reason="out of memory", is_final=True))
    assert progress.eta_s() == 0.0


def test_lines_say_what_happens(
    spec: SweepSpec, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(spec, target=3, clock=clock) as progress:
        progress.show(
            Prepared(
                baseline={"forget_nll": 1.0, "target_nll": 3.0},
                seconds=67.0,
                limited=("retain_forgetting",),
                scale="auto is retain_forgetting",
            )
        )
        progress.show(Warned(text="one GPU is smaller than the others"))
        progress.show(began(0))
        progress.show(TrialProbed(number=0, probe=Probe(step=1, metrics={}, seconds=1.0)))
        clock.at = 67.0
        progress.show(ended(0))
        progress.show(began(1, attempt=2))
        progress.show(TrialBroke(number=1, attempt=2, reason="out of memory", is_final=False))
        pruned: dict[str, Any] = {
            "state": "PRUNED",
            "feasible": False,
            "value": -1.4,
            "reason": "it diverged",
        }
        progress.show(began(2))
        progress.show(ended(2, **pruned))
        progress.show(Reporting(numbers=(0,)))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "preparing: model, data, baselines",
        "prepared in 1 min 7 s: forget cross-entropy 1.00, target 3.00 nats per token; auto is retain_forgetting",
        "warning: one GPU is smaller than the others",
        "trial 0: rank=8",
        "trial 0 COMPLETE: forget_closure 0.500 at step 4; reached its budget of 6 steps; 1/3 trials, "
        "about 2 min 14 s left",
        "trial 1 (attempt 2): rank=8",
        "trial 1 broke, will be tried again: out of memory",
        "trial 2: rank=8",
        "trial 2 PRUNED: no feasible probe (penalised score -1.400); it diverged; 2/3 trials, "
        "about 34 s left",
        "measuring finalists on the reporting split: trials 0",
    ]


def without_codes(shown: str) -> list[str]:
    """Lines without the codes of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()


def test_what_a_sweep_limits_stands_in_the_live_table_and_fits_80_columns(
    sample_run: Run,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    limited = (
        "retain_forgetting",
        "retain_accuracy_drop",
        "general_accuracy_drop",
        "retain_utility",
    )
    metrics = dict.fromkeys(limited, -0.125) | {"forget_closure": 0.25}
    with Progress(sample_run.spec, target=3, clock=clock) as progress:
        progress.show(
            Prepared(baseline={"forget_nll": 1.0, "target_nll": 3.0}, seconds=1.0, limited=limited)
        )
        progress.show(began(0))
        progress.show(TrialProbed(number=0, probe=Probe(step=2, metrics=metrics, seconds=1.0)))
    lines = without_codes(capsys.readouterr().err)
    assert max(map(len, lines)) <= 80
    shown = [" ".join(line.split()) for line in lines]
    assert "forget retain retain general" in shown
    assert "0 2/6 0.250 -0.125 -0.125 -0.125 rank=8" in shown


def test_the_live_table_shows_running_trials_under_the_labels_of_their_metrics(
    spec: SweepSpec,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "200")
    metrics = {"forget_closure": 0.25, "retain_drop": -0.01, "general_drop": 0.02}
    with Progress(spec, target=3, clock=clock) as progress:
        progress.show(began(0))
        progress.show(TrialProbed(number=0, probe=Probe(step=2, metrics=metrics, seconds=1.0)))
    lines = [" ".join(line.split()) for line in without_codes(capsys.readouterr().err)]
    above = lines.index("trial step closure drop drop parameters") - 1
    assert lines[above] == "forget retain general"
    assert "0 2/6 0.250 -0.010 0.020 rank=8" in lines
