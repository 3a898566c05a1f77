"""Hostile things to be read: a payload that leaves a mark when it runs, run folders, the command line."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning_tests.conftest import (
    _sample_folder,
    build_run,
    own_cache,
    sample_run,
    tiny_sweep,
    trial_script,
    tune,
)

__all__ = [
    "_sample_folder",
    "build_run",
    "own_cache",
    "sample_run",
    "tiny_sweep",
    "trial_script",
    "tune",
]


class Runs:
    """Runs ``touch`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[list[str]]]:
        return subprocess.check_call, (["touch", str(self._marker)],)


@dataclass(frozen=True)
class Trap:
    """Files that leave a mark when what is in them runs.

    Attributes:
        marker: The file that then is there.
    """

    marker: Path

    @property
    def payload(self) -> bytes:
        """A pickle that runs a command."""
        return pickle.dumps(Runs(self.marker))

    @property
    def code(self) -> str:
        """Python that does when it is imported."""
        return f"import pathlib\npathlib.Path({str(self.marker)!r}).touch()\n"

    def plant(self, *paths: Path) -> None:
        """Write it: Python to names that end so, as torch saves it to every second of the others, else bare."""
        for n, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                path.write_text(self.code, encoding="utf-8")
            elif n % 2:
                torch.save(Runs(self.marker), path)
            else:
                path.write_bytes(self.payload)

    def assert_nothing_ran(self) -> None:
        """The mark is not there."""
        assert not self.marker.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A trap whose mark lies beside the test's files."""
    return Trap(tmp_path / "it-ran")


@pytest.fixture
def model_copy(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model in a folder of the test's own."""
    import shutil

    return shutil.copytree(tiny_model, tmp_path / "model")


def one_line(err: pytest.ExceptionInfo[Any]) -> str:
    """What an error says, which is one line."""
    text = str(err.value)
    assert "\n" not in text, text
    return text
