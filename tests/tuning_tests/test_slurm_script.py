"""The shipped batch script is valid, and each mistake in it is found by its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Command, is_refused

from tuning.cluster import validate_cluster_file

SHIPPED = Path(__file__).resolve().parents[2] / "clusters" / "slurm.sbatch"
SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

MISTAKES = [
    pytest.param("#!/bin/bash\n", "", "line 1: must name the shell", id="no-shell"),
    pytest.param("\n", "\r\n", "must have the line ends of Unix", id="line-ends-of-windows"),
    pytest.param("--nodes=4", "--node=4", "did you mean nodes?", id="misspelt-option"),
    pytest.param("#SBATCH --nodes=4\n", "", "--nodes: must be given, got nothing", id="no-nodes"),
    pytest.param("--nodes=4", "--nodes=four", "--nodes: must be a whole number", id="nodes-in-words"),
    pytest.param(
        "--gpus-per-node=8", "--gpus-per-task=8", "must be an option for whole nodes", id="split-node"
    ),
    pytest.param(
        "--ntasks-per-node=1", "--ntasks-per-node=8", "--ntasks-per-node: one task", id="a-ray-a-gpu"
    ),
    pytest.param("#SBATCH --exclusive\n", "", "--exclusive: must be given", id="shared-node"),
    pytest.param("#SBATCH --time=", "# --time=", "--time: must be given", id="no-time-limit"),
    pytest.param("#SBATCH --requeue\n", "", "--requeue: a job whose node fails", id="not-again"),
    pytest.param("open-mode=append", "open-mode=truncate", "got truncate", id="log-is-lost"),
    pytest.param("B:USR1@300", "USR1@300", "--signal: the script itself", id="signal-to-steps"),
    pytest.param("B:USR1@300", "B:USR1@5", "at least 60 s before the end", id="signal-too-late"),
    pytest.param("exit 0' USR1", "exit 0' USR2", "trap: USR1 must have", id="trap-of-another"),
    pytest.param("scontrol requeue", "true", "must queue itself again", id="no-requeue-command"),
    pytest.param("set -u\n", "set -u\n#SBATCH --mem=0\n", "line 26: #SBATCH must", id="too-late"),
    pytest.param("MODE=token", "MODE=disabled", "RAY_AUTH_MODE: Ray must run", id="token-off"),
    pytest.param("export RAY_AUTH_MODE", "RAY_AUTH_MODE", "must be exported", id="not-exported"),
    pytest.param("export RAY_AUTH_TOKEN_PATH", "export X", "must name the file", id="no-token-file"),
    pytest.param("_TOKEN_PATH=$WORK/.ray-token", f"_TOKEN={SECRET}", "must hold no secret", id="token"),
    pytest.param("20000 + SLURM", "15000 + SLURM", "Ray's workers'", id="port-of-workers"),
    pytest.param("PORT=$((20000 + SLURM_JOB_ID % 10000))", "PORT=80", "1024 to", id="port-of-root"),
    pytest.param("host=127.0.0.1", "host=0.0.0.0", "got 0.0.0.0", id="open-dashboard"),
    pytest.param(" --dashboard-host=127.0.0.1", "", "--dashboard-host: the", id="dashboard-left-out"),
    pytest.param("--num-gpus=8", "--num-gpus=4", "--num-gpus: Ray must be told", id="idle-gpus"),
    pytest.param('"$SLURM_JOB_NUM_NODES"', "2", "--min-nodes: must be", id="two-of-four-nodes"),
    pytest.param("srun --kill-on-bad-exit=0 ray", "ray", "srun: must run it", id="one-node-only"),
    pytest.param("--num-gpus=8", "--num-gpus=8 --block", "--block: may not be", id="option-of-its-own"),
    pytest.param("    -- bash", "    bash", "` -- ` must stand before", id="no-separator"),
    pytest.param("ray symmetric-run", "ray start", "must start Ray on all nodes", id="another-start"),
    pytest.param("unlearn-tune resume", "unlearn-tune sweep", "must begin the sweep", id="never-goes-on"),
    pytest.param('"$0" --address "$2"', '"$0"', "must run on the job's Ray", id="ray-of-its-own"),
]  # fmt: skip


def test_the_shipped_script_is_valid() -> None:
    assert validate_cluster_file(SHIPPED) == []


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES)
def test_a_mistake_is_found(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "slurm.sbatch"
    path.write_bytes(text.replace(old, new).encode())
    problems = validate_cluster_file(path)
    assert any(said in problem for problem in problems), problems
    assert len(problems) <= 2, problems
    assert SECRET not in str(problems)


def test_every_mistake_is_named_at_once(tune: Command, tmp_path: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    path = tmp_path / "slurm.sbatch"
    path.write_text(
        text.replace("MODE=token", "MODE=no").replace("--requeue", "--mail-type=END"), "utf-8"
    )
    is_refused(tune("validate", path), "2 problems", "RAY_AUTH_MODE: ", "--requeue: ")


def test_a_script_that_is_no_text_is_refused(tune: Command, tmp_path: Path) -> None:
    path = tmp_path / "slurm.sbatch"
    path.write_bytes(b"#!/bin/bash\n\xff\x00")
    is_refused(tune("validate", path), "slurm.sbatch")


@pytest.mark.parametrize(
    "text", ["", "\n", "#SBATCH\n", "#SBATCH --=\n", "PORT=$((\n", "ray symmetric-run"]
)
def test_an_odd_script_is_refused_without_a_traceback(
    tune: Command, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "odd.sbatch"
    path.write_text(text, encoding="utf-8")
    is_refused(tune("validate", path), "odd.sbatch")


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        pytest.param("{ranks_per_trial: 33, gpus_per_rank: 1}", "must fit on the 32 GPUs", id="33"),
        pytest.param(
            "{ranks_per_trial: 16, gpus_per_rank: 1, placement: strict_pack}",
            "a trial on one node must fit on its 8 GPUs",
            id="two-nodes-as-one",
        ),
        pytest.param("{ranks_per_trial: 32, gpus_per_rank: 1}", None, id="all"),
        pytest.param("3", None, id="a-sweep-file-with-a-mistake-of-its-own"),
    ],
)
def test_a_trial_must_fit_on_the_gpus_of_the_job(
    tmp_path: Path, resources: str, said: str | None
) -> None:
    path = tmp_path / "slurm.sbatch"
    path.write_bytes(SHIPPED.read_bytes())
    (tmp_path / "sweep.yaml").write_text(f"resources: {resources}\n", encoding="utf-8")
    problems = validate_cluster_file(path)
    assert len(problems) == (said is not None), problems
    assert said is None or said in problems[0]
