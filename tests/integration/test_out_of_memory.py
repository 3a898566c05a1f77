"""Sweeps whose ranks really run out of memory: the system refuses an allocation, under a limit of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from tuning.run import Run, load_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

VOCABULARY = 60_000

# Python runs a module of this name at its start; the limit is on a rank alone, from its first trial on.
LIMIT = """
import resource, sys
from pathlib import Path

def limit(event, arguments):
    if event == "import" and arguments[0] == "core.training.engine":
        status = Path("/proc/self/status").read_text().splitlines()
        held = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + {more}, resource.RLIM_INFINITY))

sys.addaudithook(limit)
"""


@pytest.fixture(scope="module")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with many more tokens, each as unlikely as a byte that it never saw."""
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    unlikely = network.get_input_embeddings().weight[257 - 1].detach().clone()
    network.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    with torch.no_grad():
        network.get_input_embeddings().weight[257:] = unlikely
    folder = tmp_path_factory.mktemp("wide")
    network.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def swept(
    folder: Path, model: Path, data: Mapping[str, Path], *, more_mib: int
) -> tuple[Run, list[dict[str, Any]]]:
    """A sweep of one trial whose ranks may take so much more than they hold at their first trial."""
    roles: dict[str, Any] = {r: {"source": str(p), "max_tokens": 64} for r, p in data.items()}
    values = {
        "schema": 1,
        "name": "short",
        "model": {"source": str(model)},
        "data": roles | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl", "retain_loss": "nll"},
        "batch": {"global_batch_size": 8, "probe_batch_size": 2},
        "engine": {"dtype": "fp32", "device": "cpu", "zero_stage": 0},
        "space": {
            "optimizer.learning_rate": {"float": {"low": 1.0e-3, "high": 2.0e-3}, "why": "a test"}
        },
        "budget": {"trials": 1, "max_steps": 2, "finalists": 0},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / "site").mkdir()
    text = LIMIT.format(more=more_mib * 2**20)
    (folder / "site" / "sitecustomize.py").write_text(text, encoding="utf-8")
    paths = [str(folder / "site"), *(p for p in sys.path if p)]
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", "sweep", "sweep.yaml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    run_dir = folder / "runs" / "short"
    assert (run_dir / "events.jsonl").is_file(), done.stderr
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return load_run(run_dir), [json.loads(line) for line in lines]


def batch_of(run: Run, attempt: int) -> dict[str, Any]:
    """The batch of an attempt of trial 0, as its folder records it."""
    path = run.path / f"trials/0000/attempt-{attempt}/trial.yaml"
    batch: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["batch"]
    return batch


def test_half_of_a_pass_fits_and_the_step_stays_the_same(
    tmp_path: Path, wide_model: Path, tiny_data: Mapping[str, Path]
) -> None:
    in_the_middle = 330  # of 260 to 400, where a whole pass does not fit and half of it does
    run, events = swept(tmp_path, wide_model, tiny_data, more_mib=in_the_middle)
    assert run.trials[0].state == "COMPLETE"
    assert run.trials[0].attempt == 2
    assert batch_of(run, 1)["micro_batch_size"] is None
    assert batch_of(run, 2)["micro_batch_size"] == 4
    assert batch_of(run, 2)["global_batch_size"] == 8
    (broke,) = (e for e in events if e["event"] == "TrialBroke")
    assert "DefaultCPUAllocator" in broke["reason"]
    assert not broke["is_final"]
    assert any("ran out of memory: half as many rows" in str(e.get("text")) for e in events)


@pytest.mark.matrix
def test_a_second_time_is_the_last_and_says_what_was_estimated(
    tmp_path: Path, wide_model: Path, tiny_data: Mapping[str, Path]
) -> None:
    run, events = swept(tmp_path, wide_model, tiny_data, more_mib=100)
    assert run.trials[0].state == "FAIL"
    attempts = sorted(p.name for p in (run.path / "trials/0000").glob("attempt-*"))
    assert attempts == ["attempt-1", "attempt-2"]  # budget.max_attempts is 3
    assert batch_of(run, 2)["micro_batch_size"] == 4
    last = [e for e in events if e["event"] == "TrialBroke"][-1]
    assert last["is_final"]
    assert "a rank of the largest trial is estimated to need" in last["reason"]
