"""How a command ended, which verbs there are, and sweep files to give them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tuning import cli

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: Mapping[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What a command that succeeded printed."""
        assert self.status == 0, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found


def invoked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> Done:
    """Run ``unlearn-tune`` through its entry point."""
    monkeypatch.setattr(sys, "argv", ["unlearn-tune", *map(str, arguments)])
    capsys.readouterr()
    status: object = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code or 0
    assert isinstance(status, int)
    captured = capsys.readouterr()
    return Done(status, captured.out, captured.err)


def started(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``unlearn-tune`` in a folder, in a process of its own; what stands in the environment is given by name."""
    return subprocess.Popen(
        [sys.executable, "-m", "tuning.cli", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
    )


Command = Callable[..., Done]
WriteSpec = Callable[[Mapping[str, Any]], Path]


def changed(values: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """``values`` with a dotted path replaced, and ``space`` entries by their whole name."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    head, _, rest = path.partition(".")
    parts = [head, rest] if head == "space" else path.split(".")
    place = result
    for part in parts[:-1]:
        place = place.setdefault(part, {})
    place[parts[-1]] = value
    return result


def write(values: object, path: Path = Path("sweep.yaml")) -> Path:
    """Write values into a YAML file of the current folder."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def left_in_runs() -> list[str]:
    """Names of what stands in the folder ``runs``."""
    return [p.name for p in Path("runs").iterdir()] if Path("runs").exists() else []


def is_refused(done: Done, *expected: str, after_it_began: bool = False) -> None:
    """Assert status 2, nothing on stdout, and a reason without traceback that holds all of ``expected``."""
    assert done.status == 2, done
    assert done.out == ""
    assert "\nerror: " in done.err if after_it_began else done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for part in expected:
        assert part in done.err


def ends_refused(done: Done, *expected: str) -> None:
    """Assert what ``is_refused`` does, of a command that may have said something before its reason."""
    assert (done.status, done.out) == (2, ""), done
    assert done.err.splitlines()[-1].startswith(("error: ", "  - "))
    assert "Traceback" not in done.err
    for part in expected:
        assert part in done.err
