"""Sweeps of a tiny model on a real Ray, through the command line, and what must hold of them whatever was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import yaml

from core.store.durable import finite
from faults.tally import Tally
from faults.witness import FINISHED
from tuning.records import LEDGER_FILE, attempt_folder, read_history, read_ledger
from tuning.run import Run, load_run

_ENDS_S = 600.0
_JUDGED = ("state", "params", "stopped_by", "step", "steps", "feasible")
"""What a trial has in common with that of the control; its metrics differ in their last digits beside others."""


LONGER: Mapping[str, Any] = {
    "pruning": {"retain": None},
    "stop": {"past_target": None, "no_effect": None},
    "budget": {
        **{"trials": 6, "max_steps": 1200, "probe_every": 60, "skip_probes": False},
        **{"finalists": 1, "max_attempts": 8},
    },
    "resources": {"max_concurrent": 1},
}
"""Changes to a sweep: nothing stops its trials, so that each has twenty probes."""


class RealSweep:
    """A sweep in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        values: Mapping[str, Any],
        tally: Tally,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Write its file; add to ``tally`` what is found."""
        self.folder, self.tally = folder, tally
        self.run_dir = folder / "runs" / str(values["name"])
        self._told: dict[int, Any] = {}
        self._environment = dict(environment or os.environ) | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        (folder / "sweep.yaml").write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        tally.runs += 1

    def start(self, *arguments: str, killed_at: int = 0) -> psutil.Popen:
        """Start ``unlearn-tune ...``, to be killed at an event of its driver, if one is given."""
        module = ["faults.killed_command", str(killed_at), str(self.folder / "record")]
        return self._popen(
            [sys.executable, "-m", *(module if killed_at else ["tuning.cli"]), *arguments]
        )

    def shell(self, command: str) -> psutil.Popen:
        """Start a command as it was printed."""
        return self._popen(["sh", "-c", f"exec {command}"])

    def _popen(self, command: Sequence[str]) -> psutil.Popen:
        return psutil.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, process: psutil.Popen) -> tuple[int, str]:
        """Status and last words of a process, when it has ended; then what it acknowledged is looked at."""
        _, said = process.communicate(timeout=_ENDS_S)
        self.look()
        return process.returncode, said

    def wait_for(self, event: str, count: int, process: psutil.Popen) -> None:
        """Wait until an event has occurred ``count`` times."""
        deadline = time.monotonic() + _ENDS_S
        while sum(e["event"] == event for e in self.events()) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, self.events()
            time.sleep(0.02)

    def events(self) -> list[dict[str, Any]]:
        """The event log."""
        path = self.run_dir / "events.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half there
        return [json.loads(line) for line in lines]

    def ranks(self, process: psutil.Popen, name: str = "ray::Rank") -> list[psutil.Process]:
        """Processes that train for a driver with a Ray of its own."""
        return [c for c in process.children(recursive=True) if c.name().startswith(name)]

    def look(self) -> None:
        """See that what was told before is told as it was."""
        if not (self.run_dir / LEDGER_FILE).exists():
            return
        trials, _driver = read_ledger(self.run_dir / LEDGER_FILE)
        told = {t.number: finite(asdict(t)) for t in trials if t.state in FINISHED}
        for record in told.values():
            del record["report_metrics"], record["report_intervals"]
        for number, record in self._told.items():
            if told.get(number) != record:
                self.tally.lost += number not in told
                self.tally.twice += number in told
                self.tally.problems.append(f"trial {number}: {told.get(number)} was {record}")
        self._told |= told

    def judge(self, control: Sequence[Mapping[str, Any]] | None = None) -> Run:
        """At the end: the trials are those of a control, each told once; its record, for what else is asked."""
        self.look()
        run, tally = load_run(self.run_dir), self.tally
        found = judged(run)
        control = found if control is None else control
        for expected in control:
            if expected not in found:
                tally.lost += 1
                tally.problems.append(f"not as in the control: {expected}; found {found}")
        if len(found) != len(control) or run.state not in ("done", "no_feasible"):
            tally.problems.append(
                f"{len(found)} trials of {len(control)}, and the run is {run.state}"
            )
        ends = Counter(e["number"] for e in self.events() if e["event"] == "TrialEnded")
        tally.twice += sum(count > 1 for count in ends.values())
        went_on = {
            (e["number"], e["attempt"]): e["step"]
            for e in self.events()
            if e["event"] == "TrialResumed"
        }
        for trial in run.trials:
            for attempt in range(1, trial.attempt):
                lines = read_history(self.run_dir, trial.number, attempt)
                reached = max((line["step"] for line in lines), default=0)
                kept = went_on.get((trial.number, attempt + 1), 0)
                tally.repeated_steps += max(reached - kept, 0)
            folder = attempt_folder(trial.number, trial.attempt)
            if trial.adapter is not None and trial.adapter != f"{folder}/adapter":
                tally.problems.append(f"trial {trial.number} counts with {trial.adapter}")
        return run


def judged(run: Run) -> list[dict[str, Any]]:
    """What is the same of a run's trials whatever was killed."""
    return [{name: getattr(trial, name) for name in _JUDGED} for trial in run.trials]


def resumed(sweep: RealSweep) -> None:
    """Go on with a sweep to its end; another end is a problem of its scenario."""
    status, said = sweep.ended(sweep.start("resume", "runs/tiny"))
    if status not in (0, 3):
        sweep.tally.problems.append(f"resume ended with {status}: {said[-800:]}")
