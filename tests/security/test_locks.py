"""The locks with hashes are those of requirements.lock, and each of their packages has a hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("linux.txt", "cuda.txt", "build.txt")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """Version by name, in the spelling that all spellings of a name have in common."""
    found = PIN.findall(path.read_text(encoding="utf-8"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_hashes_are_of_the_versions_that_are_tested() -> None:
    assert pins(ROOT / "locks/linux.txt") == pins(ROOT / "requirements.lock"), "run `make hashes`"


def test_what_cuda_and_sdists_need_is_no_other_version() -> None:
    locked = pins(ROOT / "requirements.lock")
    assert not pins(ROOT / "locks/cuda.txt").keys() & locked.keys()
    assert pins(ROOT / "locks/build.txt").items() <= locked.items()


@pytest.mark.parametrize("name", LOCKS)
def test_each_package_has_a_hash_and_nothing_else_is_asked_for(name: str) -> None:
    lines = (ROOT / "locks" / name).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    for line, following in zip(wanted, [*wanted[1:], ""], strict=True):
        is_pin = PIN.match(line) is not None and line.endswith(" \\")
        is_hash = re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) is not None
        assert is_pin or is_hash, line
        assert line.endswith("\\") == following.startswith("    --hash"), line


def test_tools_of_the_audit_are_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^audit = \[(.*)\]$", text, re.MULTILINE)
    assert found is not None
    assert all("==" in tool for tool in found[1].split(","))
    assert not {"bandit", "pip-audit", "uv"} & pins(ROOT / "requirements.lock").keys()
