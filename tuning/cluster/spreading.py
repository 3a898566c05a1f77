"""Door to ray, run by a job on the head: what was shipped with it goes to one place on every node.

Ray gives each node a copy of a job's folder, under a name of its own and for as long as the job runs. A sweep file
and its data must lie where they lay, on every node, for as long as the run is gone on with.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import ray

from core.errors import UserError
from tuning.every_node import ask_every_node
from tuning.likeness import size_of


def main(source: str, target: str) -> None:
    """Copy this node's copy of the job's folder on each node.

    Args:
        source: The job's folder on the head.
        target: Where it goes, on every node.

    Raises:
        UserError: If a node cannot write there.
    """
    _copy(Path(source), Path(target))
    ray.init(address="auto", log_to_driver=False)
    for answer in ask_every_node(copy_here, target):
        if answer.problem is not None:
            raise UserError(f"node {answer.node} cannot take what was shipped: {answer.problem}")


def copy_here(target: str) -> None:
    """Runs on a node: its copy of the job's folder is where it runs."""
    _copy(Path.cwd(), Path(target))


def _copy(source: Path, target: Path) -> None:
    """Put a folder in place of another; nothing is done where that is the same, as on storage that nodes share."""
    if _content(source) == _content(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        shutil.copytree(source, beside / "new")
        if target.exists():
            target.rename(beside / "old")
        (beside / "new").rename(target)
    finally:
        shutil.rmtree(beside)


def _content(folder: Path) -> dict[str, bytes] | None:
    if size_of(folder) is None:
        return None
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as problem:
        sys.exit(f"error: {problem}")
