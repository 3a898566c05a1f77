"""A page's commands, run one after the other in one folder, as a new user would type them.

What a command does is its own; only how much of it is done is cut down (``SMALLER``), and the model of the hub is the
one that a package ships. A page needs minutes, so ``make walkthrough`` runs this and ``make test`` does not.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from command_line import started
from shown_commands import ROOT, commands_of_blocks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

INIT = (
    "unlearn-tune init mine.yaml --model package:smollm2 --forget forget.jsonl --retain retain.jsonl "
    "--approximate other.jsonl"
)
DEMO = "unlearn-tune sweep search_spaces/demo.yaml --name demo"
BEFORE: Mapping[str, Sequence[str]] = {
    "README.md": (),
    "docs/tutorial.md": (DEMO,),
    "docs/own-model.md": (),
    "docs/data.md": (),
    "docs/choosing.md": (
        INIT,
        "unlearn-tune sweep mine.yaml",
        "unlearn-tune sweep mine.yaml --name mine-2",
        "unlearn-tune sweep mine.yaml --name mine-next --set sampler.seed=1",
    ),
}
"""Pages that are walked, and what a reader has run when he comes to one."""

SMALLER: Mapping[str, Sequence[str]] = {
    "sweep": ("--trials", "4", "--set", "budget.max_steps=3"),
    "resume": ("--trials", "5"),
    "repeat": ("--top", "2", "--seeds", "2"),
    "evaluate": ("--limit", "4"),
}
"""Options that a verb is given besides the page's, or in their place."""

SERVES = ("--live", "dashboard", "reproduce 5", "reproduce ihl-is-stable")
"""What goes on until Ctrl-C, or longer than a walk may: begun, and ended as soon as it has said something."""


def smaller(command: str) -> list[str]:
    """The command's words with less to do, and what a page leaves open filled in.

    Of an option that is given twice the last one counts.
    """
    words = shlex.split(command.replace("hub:ORG/NAME", "package:smollm2"))[1:]
    return words if "--dry-run" in words else [*words, *SMALLER.get(words[0], ())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a clone has, and three files of one's own: texts that the model knows by heart, and others."""
    for name in ("search_spaces", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for shipped, name in (("forget", "forget"), ("retain", "retain"), ("approximate", "other")):
        shutil.copy(ROOT / f"core/data/embedded/{shipped}.jsonl", tmp_path / f"{name}.jsonl")
    return tmp_path


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell makes what it starts in the background deaf to Ctrl-C, and commands inherit that from their parent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def walk(command: str, folder: Path) -> None:
    """Run a shown command to its end, or to its first words if it would go on."""
    goes_on = any(served in command for served in SERVES)
    with started(folder, *smaller(command)) as process:
        if goes_on:
            pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
            said, _, _ = select.select(pipes, [], [], 120)
            assert said, f"{command}: nothing said"
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=1800)
    assert "Traceback" not in err, f"{command}\n{err}"
    assert process.returncode in ((0, 130) if goes_on else (0,)), f"{command}\n{out}\n{err}"


@pytest.mark.parametrize("page", BEFORE)
def test_a_page_can_be_walked(page: str, folder: Path) -> None:
    shown = list(commands_of_blocks((ROOT / page).read_text(encoding="utf-8")))
    assert shown
    for command in (*BEFORE[page], *shown):
        walk(command, folder)


def test_the_python_of_its_page_runs(folder: Path) -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4 of 4 trials" in done.stdout
    assert (folder / "from-python-best" / "adapter_config.json").is_file()
