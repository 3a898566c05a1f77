"""What is shipped with a sweep: its file, and the data and models that it names by a relative path."""

import os
import shutil
from pathlib import Path

from core.errors import UserError
from tuning.files import paths_changed, read_yaml

MOST_BYTES = 400 * 2**20
"""Ray ships at most 500 MiB with a job."""


def shipped_files(spec: Path) -> list[Path]:
    """Files and folders that a sweep file names by a relative path, and that are here; absolute."""
    named: list[str] = []

    def note(value: str) -> str:
        named.append(value)
        return value

    paths_changed(read_yaml(spec), note)
    folder = spec.resolve().parent
    found = [folder / n for n in named if ":" not in n and not Path(n).is_absolute()]
    return sorted({path.resolve() for path in found if path.exists()})


def stage(spec: Path, folder: Path) -> str:
    """Copy a sweep file and what it names into a folder, as they lie to each other.

    Args:
        spec: The sweep file.
        folder: An empty folder.

    Returns:
        Path of the sweep file below the folder.

    Raises:
        UserError: If it is too much to be shipped.
    """
    spec = spec.resolve()
    files = [spec, *shipped_files(spec)]
    n_bytes = sum(_size(path) for path in files)
    if n_bytes > MOST_BYTES:
        raise UserError(
            f"{spec}: it names {n_bytes / 2**20:.0f} MiB of relative files, and at most {MOST_BYTES // 2**20} MiB can "
            "be shipped with a job; put them on storage that all nodes mount, and name them by an absolute path"
        )
    root = Path(os.path.commonpath([path.parent for path in files]))
    for path in files:
        there = folder / path.relative_to(root)
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, there, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, there)
    return spec.relative_to(root).as_posix()


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
    return path.stat().st_size
