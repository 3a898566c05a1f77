"""Trials whose ranks really hang, are really too slow, or are asked to end: on a real Ray, through the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from command_line import started
from small_sweep import tiny_values

from core.store.durable import read_lines
from tuning.run import Run, load_run

pytestmark = [pytest.mark.integration, pytest.mark.matrix, pytest.mark.timeout(900)]

# Python runs a module of this name at its start; a rank whose file `sleep` is there sleeps in its next step.
SLEEPER = """
import sys, time
from pathlib import Path

def sleep(event, arguments):
    if event == "import" and arguments[0] == "core.training.engine":
        from threading import Timer
        Timer(2.0, patch).start()

def patch():
    from core.training.engine import Engine
    step = Engine.step
    def sleeping(self, *arguments, **options):
        while Path({flag!r}).exists():
            time.sleep(0.1)
        return step(self, *arguments, **options)
    Engine.step = sleeping
"""


class Driven:
    """A sweep of long trials over the tiny model, in a process of its own."""

    def __init__(self, folder: Path, model: Path, data: Mapping[str, Path]) -> None:
        self.folder = folder
        self.values = tiny_values(model, data) | {
            "name": "long",
            "method": {"forget_loss": "ihl", "retain_loss": "nll"},
            "pruning": {"retain": None},
            "stop": {"past_target": None, "no_effect": None},
            "space": {
                "optimizer.learning_rate": {
                    "float": {"low": 1.0e-5, "high": 2.0e-5},
                    "why": "a test",
                }
            },
        }

    def start(self, *arguments: str, **budget: Any) -> subprocess.Popen[str]:
        """Start ``unlearn-tune ...``; with a budget, on a sweep file with it."""
        if budget:
            values = self.values | {"budget": {"finalists": 0, "skip_probes": False} | budget}
            (self.folder / "sweep.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return started(self.folder, *arguments)

    @property
    def run(self) -> Run:
        return load_run(self.folder / "runs" / "long")

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = read_lines(self.folder / "runs" / "long" / "events.jsonl")
        return [line for line in lines if line["event"] == kind]

    def wait_for(self, kind: str, count: int, process: subprocess.Popen[str]) -> None:
        """Wait until the event has occurred ``count`` times."""
        deadline = time.monotonic() + 400
        while len(self.events(kind)) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, self.events(kind)
            time.sleep(0.05)


@pytest.fixture
def driven(tmp_path: Path, tiny_model: Path, tiny_data: Mapping[str, Path]) -> Driven:
    return Driven(tmp_path, tiny_model, tiny_data)


def processes(driver: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
    """Those of ``driver`` that are of a kind, ``ray::Rank`` say."""
    children = psutil.Process(driver.pid).children(recursive=True)
    return [p for p in children if p.name().startswith(kind)]


@pytest.mark.parametrize("packing", [1, 2])
def test_a_stopped_rank_is_killed_and_its_trial_fails_or_is_tried_again(
    driven: Driven, packing: int
) -> None:
    """One rank of two is stopped in the middle; the other waits for it in a collective."""
    driven.values["engine"] |= {"packing": packing}
    driven.values["resources"] = {"ranks_per_trial": 2, "max_concurrent": packing}
    process = driven.start(
        *("sweep", "sweep.yaml"),
        **{"trials": packing, "max_steps": 900, "probe_every": 300},
        **{"hang_timeout_s": 5.0, "max_attempts": 1},
    )
    driven.wait_for("TrialProbed", 1, process)
    ranks = processes(process, "ray::PackRank" if packing > 1 else "ray::Rank")
    assert len(ranks) == 2
    time.sleep(1.0)  # what is done right after a probe may take half an hour
    ranks[1].suspend()
    _gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    _, err = process.communicate(timeout=300)
    assert process.returncode == 4, err
    for trial in driven.run.trials:
        assert trial.state == "FAIL" and str(trial.reason).startswith("HungRankError: rank")
        assert "budget.hang_timeout_s" in str(trial.reason)
    if packing > 1:
        return

    again = driven.start("retry", "runs/long", "--failed")
    _, err = again.communicate(timeout=500)
    assert again.returncode == 0, err
    failed, retried = driven.run.trials
    assert (failed.state, retried.state, retried.retry_of) == ("FAIL", "COMPLETE", 0)
    assert retried.params == failed.params
    assert (retried.proposed_by, driven.run.target) == ("retry", 2)
    nothing = driven.start("retry", "runs/long", "--failed")
    assert "nothing to do" in nothing.communicate(timeout=60)[1]


def test_a_trial_that_sleeps_is_out_of_time_and_judged_by_its_probes(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, site = driven.folder / "sleep", driven.folder / "site"
    site.mkdir()
    text = SLEEPER.format(flag=str(flag)) + "\nsys.addaudithook(sleep)\n"
    (site / "sitecustomize.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    process = driven.start("sweep", "sweep.yaml", trials=1, max_steps=3000, trial_timeout_s=45.0)
    driven.wait_for("TrialProbed", 3, process)
    flag.touch()
    (rank,) = processes(process, "ray::Rank")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not rank.is_running()
    (trial,) = driven.run.trials
    assert (trial.state, trial.stopped_by, trial.attempt) == ("COMPLETE", "trial_timeout", 1)
    assert "budget.trial_timeout_s = 45 s" in str(trial.reason)


def test_a_signal_waits_for_a_checkpoint_and_a_second_one_does_not(driven: Driven) -> None:
    """The probe is far: what the first signal leaves is a checkpoint, and ``resume`` goes on from it."""
    process = driven.start(
        *("sweep", "sweep.yaml", "--grace", "300"),
        **{"trials": 1, "max_steps": 20_000, "probe_every": 10_000},
    )
    driven.wait_for("TrialBegan", 1, process)
    log = driven.run.path / "trials/0000/attempt-1/history.jsonl"
    while not log.exists():  # its first line comes before the first step
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 143, err
    assert "the sweep stops: 1 running" in err and "unlearn-tune resume runs/long" in err
    assert driven.events("TrialProbed") == []
    assert driven.run.state == "interrupted"
    (checkpoint,) = driven.run.path.glob("trials/0000/attempt-1/checkpoints/step-*")

    process = driven.start("resume", "runs/long", "--grace", "300")
    driven.wait_for("TrialBegan", 2, process)
    log = driven.run.path / "trials/0000/attempt-2/history.jsonl"
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.2)
    assert checkpoint.exists()
    (rank,) = processes(process, "ray::Rank")
    rank.suspend()  # so that the grace is not over before the second signal
    process.send_signal(signal.SIGINT)
    driven.wait_for("Warned", 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), err
    rank.kill()
    assert driven.run.state == "interrupted"
    assert [t.state for t in driven.run.trials] == ["INTERRUPTED"]
