"""Where Ray's sockets go, when it gets a token, and what variables with Windows line ends become."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from tuning.surroundings import (
    LONGEST_SOCKET,
    ROOM,
    can_be_written,
    folder_problem,
    own_token,
    ray_folder,
    without_carriage_returns,
)

NOWHERE = "/proc/none"
"""A folder that nobody can make, root neither."""


def test_ray_goes_where_it_was_told(tmp_path: Path) -> None:
    short = Path(f"/tmp/t{os.getpid()}")
    assert ray_folder({"TMPDIR": str(short)}) == short / "ray"
    assert ray_folder({"TMPDIR": str(tmp_path), "RAY_TMPDIR": str(short)}) == short / "ray"
    assert ray_folder({}) == Path("/tmp/ray")


@pytest.mark.parametrize("folder", [f"/tmp/{'x' * 100}", f"/tmp/{'ü' * 20}", NOWHERE])
@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_ray_cannot_use_is_not_taken(name: str, folder: str) -> None:
    assert ray_folder({name: folder}) == Path("/tmp/ray")


def test_the_room_of_a_socket_is_counted_in_bytes() -> None:
    longest = Path("/tmp") / ("x" * (ROOM - len("/tmp/")))
    assert folder_problem(longest) is None
    found = folder_problem(longest.with_name(longest.name + "x"))
    assert found is not None and f"has {ROOM + 1} bytes" in found and f"at most {ROOM} " in found
    assert LONGEST_SOCKET == 107


def test_without_any_folder_for_sockets_a_sweep_is_refused() -> None:
    program = "from tuning.surroundings import ray_folder; ray_folder()"
    as_it_is = "mount --bind $f $f && mount -o remount,bind,ro $f"  # this Python may lie there
    read_only = f"for f in /tmp /dev/shm; do {as_it_is}; done"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{read_only}; exec "$@"', "sh", sys.executable, "-c", program],
        env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TMPDIR": f"/{'x' * 100}"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{UserError.__module__}.UserError: RAY_TMPDIR: "), done.stderr
    for part in (f"/{'x' * 100}/ray has 105 bytes", "/tmp/ray cannot be written", "set RAY_TMPDIR"):
        assert part in last


def test_ray_has_a_token_of_its_own_unless_one_is_given(tmp_path: Path) -> None:
    for home in (NOWHERE, str(tmp_path)):
        environment = {"HOME": home}
        with own_token(environment):
            assert len(environment["RAY_AUTH_TOKEN"]) == 64
        assert environment == {"HOME": home}
    for given in ({"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_TOKEN_PATH": "/x"}):
        environment = dict(given)
        with own_token(environment):
            assert environment == given
    assert not any(tmp_path.iterdir())


def test_a_folder_below_one_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert can_be_written(tmp_path / "new" / "newer")
    assert not can_be_written(tmp_path / "file" / "below")


def test_a_carriage_return_is_cut_off_a_variable() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0\r", "UNLEARN_TUNE_CACHE": "/a\r b", "HOME": "/root"}
    assert without_carriage_returns(environment) == ["CUDA_VISIBLE_DEVICES"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["UNLEARN_TUNE_CACHE"] == "/a\r b"
