"""Door to ray: do all nodes of a cluster see the run folder? Ranks write histories and adapters there."""

import contextlib
import secrets
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import UserError, first_line
from core.store.durable import commit_text

QUESTION = ".shared"
"""Beginning of the names of the files that are exchanged."""

_TIMEOUT_S = 60.0


def refuse_unshared(run_dir: Path) -> None:
    """Refuse a cluster of which a node that runs trials does not see the run folder.

    A file is written here and read on each node, and each node's answer is read here. Nodes that an
    autoscaler adds later are not asked; a trial that loses its adapter there ends the sweep.

    Raises:
        UserError: With the node's address and what it found.
    """
    token = secrets.token_hex(16)
    question = run_dir.resolve() / QUESTION
    commit_text(question, token)
    answers: list[Path] = []
    try:
        for node in ray.nodes():
            if not node["Alive"] or not node["Resources"].get("CPU"):
                continue
            answer = question.with_name(f"{QUESTION}-{node['NodeID'][:12]}")
            answers.append(answer)
            problem = _asked(node["NodeID"], question, answer, token)
            if problem is not None:
                raise UserError(
                    f"{run_dir}: node {node['NodeManagerAddress']} does not share the run folder: {problem}; put it "
                    f"on storage that all nodes mount under one path, {run_dir.resolve()}"
                )
    finally:
        for path in (question, *answers):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _asked(node: str, question: Path, answer: Path, token: str) -> str | None:
    """What is wrong between a node and this one, or ``None``."""
    placed = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(_answered).options(num_cpus=0, scheduling_strategy=placed)
    try:
        found = ray.get(task.remote(str(question), str(answer)), timeout=_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        return f"it does not answer within {_TIMEOUT_S:g} s"
    except ray.exceptions.RayTaskError as err:
        return first_line(err.cause)
    if found != token:
        return "it reads another file there"
    if not answer.is_file() or answer.read_text(encoding="utf-8") != token:
        return "what it writes there is not seen here"
    return None


def _answered(question: str, answer: str) -> str:
    """Runs on a node: read the question and repeat it in the answer."""
    token = Path(question).read_text(encoding="utf-8")
    Path(answer).write_text(token, encoding="utf-8")
    return token
