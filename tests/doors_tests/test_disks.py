"""A folder that cannot be written, a file system without locks, a damaged cache: one error, and what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import ROOT, Command, is_refused, left_in_runs, write

from core.errors import FileError
from core.store import artifacts
from core.store.locks import one_at_a_time, try_lock
from core.store.place import CACHE_VARIABLE, below_home
from core.store.refusal import refusal


def system_error(code: int, *places: str) -> OSError:
    return OSError(code, os.strerror(code), *places)


@pytest.mark.parametrize(
    ("err", "message"),
    [
        pytest.param(
            system_error(errno.EACCES, "/x/y"),
            "/x/y: Permission denied; give a folder that this user can write", id="permission",
        ),
        pytest.param(system_error(errno.EROFS, "/x"), "/x: Read-only file system; give a folder", id="read-only"),
        pytest.param(system_error(errno.EDQUOT, "/x"), "/x: Disk quota exceeded; give a folder with room", id="quota"),
        pytest.param(
            system_error(errno.ENOLCK, "/x"),
            "/x: No locks available; give a folder on a disk with file locks", id="locks",
        ),
        pytest.param(system_error(errno.ENOTDIR, "/x"), "/x: Not a directory; give a folder; a file is", id="file"),
        pytest.param(system_error(errno.ENAMETOOLONG, "/x"), "/x: File name too long; give a shorter path", id="long"),
        pytest.param(system_error(errno.EIO, "/x"), "/x: Input/output error; give another disk", id="broken"),
        pytest.param(system_error(errno.ESTALE, "/x"), "/x: Stale file handle; give a mounted", id="unmounted"),
        pytest.param(
            system_error(errno.EACCES, "/cache/models/x"),
            f"cache folder /cache: /cache/models/x: Permission denied; set {CACHE_VARIABLE} to a folder", id="cache",
        ),
        pytest.param(
            system_error(errno.ENOENT, "/cache/models"),
            f"cache folder /cache: /cache/models: No such file or directory; set {CACHE_VARIABLE}", id="no-cache",
        ),
        pytest.param(
            system_error(errno.EMFILE), "Too many open files: raise the limit of open files (`ulimit -n", id="limit"
        ),
        pytest.param(
            OSError(errno.ENOENT, "No usable temporary directory found in ['/x']"),
            "No usable temporary directory found in ['/x']; set TMPDIR to a folder", id="temporary",
        ),
    ],
)  # fmt: skip
def test_an_error_of_the_system_is_said_with_place_and_advice(
    monkeypatch: pytest.MonkeyPatch, err: OSError, message: str
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "/cache")
    found = refusal(err)
    assert found is not None and found.startswith(message)


@pytest.mark.parametrize(
    "err",
    [
        pytest.param(system_error(errno.ENOENT, "/x/y"), id="a-file-of-ours-that-is-not-there"),
        pytest.param(system_error(errno.EACCES), id="no-place"),
        pytest.param(system_error(errno.EBADF, "/x"), id="a-closed-file"),
        pytest.param(OSError("something"), id="no-number"),
    ],
)
def test_a_bug_is_not_taken_for_the_systems_word(err: OSError) -> None:
    assert refusal(err) is None


# Places that nobody can write


def in_the_way(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("", encoding="utf-8")
    return path / "inside"


@pytest.mark.parametrize("place", [lambda _: Path("/proc/nothing"), in_the_way])
def test_a_cache_that_cannot_be_written_is_refused_and_no_run_is_made(
    tune: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_sweep: Any, place: Any
) -> None:
    cache = place(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    done = tune("sweep", write(tiny_sweep))
    is_refused(done, f"cache folder {cache}: ", f"; set {CACHE_VARIABLE} to ", after_it_began=True)
    assert left_in_runs() == []


def test_a_run_folder_that_cannot_be_made_is_refused(tune: Command, tiny_sweep: Any) -> None:
    Path("runs").write_text("a file", encoding="utf-8")
    done = tune("sweep", write(tiny_sweep))
    is_refused(done, "runs/tiny: Not a directory; give a folder", after_it_began=True)


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_computed(
    tune: Command, tiny_model: Path
) -> None:
    Path("file").write_text("", encoding="utf-8")
    done = tune("evaluate", tiny_model, "--suite", "probes", "--out", "file/x.json")
    is_refused(done, "--out: ", "/file is no folder that this user can write")


_NAMESPACE = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]


def has_namespaces() -> bool:
    try:
        done = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="no namespaces for users and mounts here")
@pytest.mark.parametrize(
    ("read_only", "message"),
    [("cache", f"cache folder {{}}/cache: {{}}/cache/.in-use: Read-only file system; set {CACHE_VARIABLE} to a"),
     ("runs", "error: runs/tiny: Read-only file system; give a folder that this user can write")],
)  # fmt: skip
def test_a_read_only_file_system_is_refused(
    tmp_path: Path, tiny_sweep: dict[str, Any], read_only: str, message: str
) -> None:
    (tmp_path / read_only).mkdir()
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny_sweep), encoding="utf-8")
    command = f"mount -t tmpfs -o ro none {read_only} && exec {sys.executable} -m tuning.cli sweep sweep.yaml"
    done = subprocess.run(
        [*_NAMESPACE, "sh", "-c", command],
        cwd=tmp_path,
        env=os.environ | {CACHE_VARIABLE: str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message.format(tmp_path, tmp_path) in done.stderr


def test_a_user_without_a_home_is_told_what_to_set(
    tune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number which no user has."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    is_refused(
        tune("cache", "list"),
        f"{CACHE_VARIABLE}: the cache lies in the home folder",
        "has no home folder; set it to",
    )
    assert not below_home("x").exists()


# File systems without locks


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    def without(*_: object) -> None:
        raise system_error(code)

    monkeypatch.setattr(fcntl, "flock", without)
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError) as caught:
        try_lock(file)
    assert "; give a folder on a disk with file locks" in (refusal(caught.value) or "")
    assert str(tmp_path / "file") in (refusal(caught.value) or "")
    with pytest.raises(OSError) as caught, one_at_a_time(tmp_path / "made"):
        pass
    assert f"{tmp_path / 'made.lock'}: " in (refusal(caught.value) or "")
    assert "a disk with file locks" in (refusal(caught.value) or "")


def test_a_sweep_without_locks_is_refused_and_a_copied_run_is_read(
    tune: Command, monkeypatch: pytest.MonkeyPatch, tiny_sweep: Any, tmp_path: Path
) -> None:
    from tuning.records import LOCK_FILE, is_driven

    def without(*_: object) -> None:
        raise system_error(errno.ENOLCK)

    (tmp_path / LOCK_FILE).write_text("", encoding="utf-8")
    assert not is_driven(tmp_path)
    monkeypatch.setattr(fcntl, "flock", without)
    done = tune("sweep", write(tiny_sweep))
    is_refused(done, "No locks available; ", "a disk with file locks", after_it_began=True)
    assert left_in_runs() == []
    assert not is_driven(tmp_path)


def test_a_lock_is_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w") as mine, path.open("w") as other:
        assert try_lock(mine)
        assert not try_lock(other)
        assert not try_lock(other, shared=True)
    with one_at_a_time(path), pytest.raises(TimeoutError), one_at_a_time(path, timeout_s=0.0):
        pass


# What lies in the cache


def test_a_damaged_artifact_is_named_with_how_to_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    rule = r"\.(safetensors|json): a file of the cache is damaged .*`unlearn-tune cache clear --kind factors`"
    artifacts.tensors("factors", {"a": 1}, lambda: {"x": torch.zeros(1)})
    artifacts.record("factors", {"a": 2}, lambda: {"x": 1.0})
    artifacts.tensors_by_row("factors", {"a": 3}, ["r"], lambda _: {"r": torch.zeros(1)})
    for path in (*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.json")):
        path.write_bytes(b"\xff torn")
    with pytest.raises(FileError, match=rule):
        artifacts.tensors("factors", {"a": 1}, dict)
    with pytest.raises(FileError, match=rule):
        artifacts.record("factors", {"a": 2}, dict)
    with pytest.raises(FileError, match=rule):
        artifacts.tensors_by_row("factors", {"a": 3}, ["r"], lambda _: {})


def test_tensors_that_cannot_be_written_are_the_systems_error(tmp_path: Path) -> None:
    """Safetensors has an error of its own, with the system's number in its words."""
    with pytest.raises(FileNotFoundError) as caught:
        artifacts.save_tensors({"x": torch.zeros(4)}, tmp_path / "no" / "x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "no" / "x"))
