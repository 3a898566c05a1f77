"""Names that others wrote, kept inside the folder that they are names in.

A run folder or an export may come from anybody. A name in it, of an adapter say, or a link in it must not have a file
of this machine read, overwritten or handed on.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from core.errors import FileError

_COPY = "it is no part of the folder; copy the folder with what it needs, without links"


def inside(folder: Path, name: str | Path) -> Path:
    """Path of something in a folder, which need not exist.

    Args:
        folder: The folder; a link to one is what it leads to.
        name: Path relative to it.

    Raises:
        FileError: If the name or a link on the way leads out of the folder.
    """
    path = folder / name
    root, end = os.path.realpath(folder), os.path.realpath(path)
    if end != root and not end.startswith(root.rstrip(os.sep) + os.sep):
        raise FileError(str(path), f"leads out of {folder}, to {end}; {_COPY}")
    return path


def refuse_links_out(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuse a folder in which a link leads out of it.

    Args:
        folder: The folder.
        names: Names in it that are looked at, not what is below them; everything if absent.

    Raises:
        FileError: With the first that does.
    """
    if names is not None:
        for name in names:
            inside(folder, name)
        return
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink():
                inside(folder, path.relative_to(folder))
