"""The notebook runs, cell after cell, on a run folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from command_line import ROOT

from tuning.run import Run

NOTEBOOK = ROOT / "examples" / "inspect_a_run.ipynb"


def script(notebook: Path) -> str:
    """Its code cells as one program; the last expression of each is shown, as in a notebook."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = "import code\nshell = code.InteractiveConsole({})\n"
    return shown + "".join(f"shell.push({line!r})\n" for c in codes for line in _lines(c))


def _lines(cell: str) -> list[str]:
    """What is typed into a prompt: blank lines only where a block ends."""
    lines = [line for line in cell.splitlines() if line.strip()]
    typed: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        typed.append(line)
        if line.startswith(" ") and not following.startswith(" "):
            typed.append("")
    return typed


def test_every_cell_runs_on_a_run_folder(sample_run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(exist_ok=True)
    link = tmp_path / "runs" / "demo"
    if not link.exists():
        link.symlink_to(sample_run.path)
    done = subprocess.run(
        [sys.executable, "-c", script(NOTEBOOK)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "best trial 0: forget_closure 0.900" in done.stdout
    assert (tmp_path / "next.yaml").is_file()
    assert "('sample', 9, " in done.stdout  # the study has the name of the run
