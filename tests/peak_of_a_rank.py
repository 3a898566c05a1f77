"""The parts of a trial in their order, in a process of their own, and the most memory that it held.

Run as ``python tests/peak_of_a_rank.py TRIAL.json``. It is the worker's way without its comparison of levels:
a model with random weights has nothing to forget.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def status(name: str) -> int:
    """A line of this process's status, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def run(values: Mapping[str, Any]) -> dict[str, int]:
    """Make all steps of a trial and one probe."""
    from core.config import parse_trial
    from core.measuring.meter import Meter
    from core.model.loading import forward_of
    from core.training.place import own_engine
    from core.training.ranks import join_alone
    from core.training.steps import Steps
    from core.training.warm import Warm

    trial = parse_trial(values, where="measured")
    group, _meeting = join_alone(trial.engine)
    before = status("VmRSS")
    warm = Warm()
    model, data = warm.model(trial), warm.data(trial)
    loaded = status("VmHWM")
    steps = Steps(trial, model, data)
    steps.prepare()
    place = own_engine(trial, warm, steps, group=group)
    for _ in range(trial.selection.max_steps):
        steps.train(place, group)
    meter = Meter(model, group, batch_size=trial.batch.probe_batch_size)
    with place.alone() as network:
        meter.sums(forward_of(network), data, part="probe")
    return {"before": before, "loaded": loaded, "peak": status("VmHWM")}


def measured(folder: Path, values: Mapping[str, Any]) -> dict[str, int]:
    """``run`` in a new process: ``before`` the model, ``loaded``, and the ``peak``, bytes."""
    path = folder / "measured.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))  # noqa: T201
