"""Do the nodes of a cluster run what the driver runs, and have they its files? Asked before the first trial.

Our own code is shipped with the driver, so that what another installation left on a node is found by its hash; the
packages are what the node installed. A difference would make trials of one sweep differ by where they ran.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.errors import UserError
from tuning.config import SweepSpec
from tuning.every_node import ask_every_node
from tuning.files import paths_changed

PACKAGES = ("ray", "torch", "deepspeed", "peft", "transformers")
CODE = "code of core and tuning"


def refuse_unlike(spec: SweepSpec) -> None:
    """Refuse a cluster of which a node differs from the driver, or lacks a file of the sweep.

    Raises:
        UserError: With the node's address, and what it has and what the driver has.
    """
    here, files = installed(), local_files(spec)
    for answer in ask_every_node(looked_up, files):
        where = f"node {answer.node}"
        if answer.problem is not None:
            raise UserError(f"{where} cannot be asked for its versions: {answer.problem}")
        there, lacking = answer.found
        differences = [
            f"{name} is {there.get(name)} there and {mine} here"
            for name, mine in here.items()
            if there.get(name) != mine
        ]
        if differences:
            raise UserError(
                f"{where} does not run what the driver runs: {'; '.join(differences)}; install requirements.lock of "
                "one release on all nodes, and start Ray there anew"
            )
        if lacking:
            raise UserError(
                f"{where} does not have {' and '.join(lacking)} as the driver has it; put it on storage that all "
                "nodes mount under one path, or ship it with `unlearn-tune cluster submit`"
            )


def looked_up(files: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """Runs on a node: what is installed there, and which of the files it lacks or has in another size."""
    return installed(), [name for name, size in files.items() if size_of(Path(name)) != size]


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that compute, without what says CPU or GPU; the hash of our code."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "absent"
    return found | {CODE: code_hash()}


def code_hash() -> str:
    """Hash of our Python files, as this process would import them."""
    import core
    import tuning

    return hash_of(
        [Path(package.__file__).parent for package in (core, tuning) if package.__file__]
    )


def hash_of(folders: Sequence[Path]) -> str:
    """Hash of the names and contents of the Python files below folders; twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder.parent).as_posix()
            for part in (name.encode(), path.read_bytes()):
                digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]


def local_files(spec: SweepSpec) -> dict[str, int]:
    """Files and folders of this machine that a sweep names, with their sizes."""
    named: list[str] = []

    def note(value: str) -> str:
        named.append(value)
        return value

    values: dict[str, Any] = {"model": spec.model, "data": spec.data}
    paths_changed(values, note)
    sizes = {name: size_of(Path(name)) for name in named if Path(name).is_absolute()}
    return {name: size for name, size in sizes.items() if size is not None}


def size_of(path: Path) -> int | None:
    """Bytes of a file, or of all files below a folder; ``None`` if there is none."""
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
    return path.stat().st_size if path.is_file() else None
