"""A real sweep on a Ray of its own, with secrets in its environment and a trial that breaks by quoting them all.

None of them is in anything that is kept or shown, and nobody without the sweep's own token is let in.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
import yaml
from small_sweep import tiny_values

from tuning import cli
from tuning.run import load_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

CANARIES = {
    "HF_TOKEN": "hf_c4n4ryc4n4ryc4n4ryc4n4ry",
    "AWS_SECRET_ACCESS_KEY": "c4n4ry/aws+0123456789abcdef",
    "DATABASE_URL": "postgresql://admin:c4n4ry-database@db.example/optuna",
    "WANDB_API_KEY": "c4n4ry0wandb0123456789",
    "ftp_proxy": "http://user:c4n4ry-proxy@proxy.example:3128",
}
QUOTED = "password=c4n4ry-in-the-error https://user:c4n4ry-in-a-url@host/path"

BREAKS = f"""
import os, sys

def breaks(event, arguments):
    if event == "open" and arguments[1] == "a" and str(arguments[0]).endswith("0001/attempt-1/history.jsonl"):
        quoted = " ".join(os.environ[name] for name in {list(CANARIES)!r})
        raise RuntimeError("cannot reach " + quoted + " " + {QUOTED!r})

sys.addaudithook(breaks)
"""
"""Imported by every Python of the sweep: the second trial breaks where it begins its history."""


def canaries() -> list[bytes]:
    """The parts that nobody could write by chance."""
    values = (*CANARIES.values(), *QUOTED.split())
    return [
        part.encode()
        for value in values
        for part in value.replace("@", " ").replace("=", " ").replace(":", " ").split()
        if "c4n4ry" in part
    ]


@dataclass(frozen=True)
class Swept:
    """What a sweep left and said.

    Attributes:
        folder: Where it ran; the run is ``runs/tiny`` there.
        said: Everything that commands wrote, by command.
        strangers: How its Ray answered who showed no token, a wrong one, and its own.
        token: Its own.
    """

    folder: Path
    said: Mapping[str, str]
    strangers: Mapping[str, str]
    token: str


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Mapping[str, Path]
) -> Swept:
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "breaks").mkdir()
    (folder / "breaks" / "sitecustomize.py").write_text(BREAKS, encoding="utf-8")
    values = tiny_values(tiny_model, tiny_data) | {
        "space": {
            "optimizer.learning_rate": {"float": {"low": 1e-3, "high": 2e-3}, "why": "it matters"}
        },
        "budget": {"trials": 2, "max_steps": 1, "max_attempts": 1},
        "resources": {"max_concurrent": 1},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    env = os.environ | CANARIES
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "breaks"), *(p for p in sys.path if p)])
    env["HOME"] = str(folder / "home")
    (folder / "home").mkdir()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)

    command = [sys.executable, "-m", "tuning.cli", "sweep", "sweep.yaml"]
    pipe = subprocess.PIPE
    sweep = subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)
    address, token = server_of(sweep)
    strangers = {
        "none": answer(address, None),
        "wrong": answer(address, "0" * 64),
        "own": answer(address, token),
    }
    said = {"sweep": "".join(sweep.communicate(timeout=1500))}
    assert sweep.returncode == 0, said["sweep"][-2000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in CANARIES.items():
            patch.setenv(name, value)
        for words in (["report", "runs/tiny"], ["show", "runs/tiny", "1"], ["doctor"],
                      ["export", "runs/tiny", "--out", "out"]):  # fmt: skip
            patch.setattr(sys, "argv", ["unlearn-tune", *words])
            written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
            with redirect_stdout(written), redirect_stderr(written), suppress(SystemExit):
                cli.main()
            written.seek(0)
            said[words[0]] = written.read()
    return Swept(folder, said, strangers, token)


def server_of(sweep: subprocess.Popen[str]) -> tuple[str, str]:
    """Address of the server of a sweep's Ray, and the token that it was started with."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and sweep.poll() is None:
        for process in psutil.Process(sweep.pid).children(recursive=True):
            try:
                ports = [w for w in process.cmdline() if w.startswith("--gcs_server_port=")]
                if ports and process.name() == "gcs_server":
                    host = [c for c in process.net_connections() if c.status == "LISTEN"]
                    if host:
                        return f"127.0.0.1:{host[0].laddr.port}", process.environ()[
                            "RAY_AUTH_TOKEN"
                        ]
            except psutil.Error:
                continue
        time.sleep(0.2)
    raise AssertionError(sweep.communicate())


def answer(address: str, token: str | None) -> str:
    """How a Ray answers a client with a token."""
    shown = None if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.JobInfoGcsService/GetAllJobInfo")
        for _ in range(100):
            try:
                ask(b"", timeout=10, metadata=shown)
            except grpc.RpcError as err:
                if err.code() is grpc.StatusCode.UNAVAILABLE:  # it is still starting
                    time.sleep(0.1)
                    continue
                return str(err.code().name)
            return "OK"
    return "UNAVAILABLE"


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_the_trial_broke_by_quoting_the_secrets(swept: Swept) -> None:
    run = load_run(swept.folder / "runs" / "tiny")
    assert [t.state for t in run.trials] == ["COMPLETE", "FAIL"]
    reason = str(run.trials[1].reason)
    assert reason.startswith(
        "RuntimeError: cannot reach *** *** postgresql://***@db.example/optuna"
    )
    folder = run.path / "trials/0001/attempt-1"
    assert "Traceback" in json.loads((folder / "failure.json").read_text())["traceback"]
    assert "trial broke" in (folder / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["runs", "out", "cache"])
def test_no_secret_is_in_what_a_sweep_leaves(
    swept: Swept, artifact_cache: Path, place: str
) -> None:
    root = artifact_cache if place == "cache" else swept.folder / place
    files = list(files_below(root))
    assert len(files) > 2
    for path in files:
        content = path.read_bytes()
        found = [canary for canary in [*canaries(), swept.token.encode()] if canary in content]
        assert not found, path


def test_no_secret_is_in_what_commands_say(swept: Swept) -> None:
    assert "cannot reach" in swept.said["show"]
    assert "ray token" in swept.said["doctor"]
    for command, text in swept.said.items():
        found = [
            canary for canary in [*canaries(), swept.token.encode()] if canary in text.encode()
        ]
        assert not found, (command, text)


def test_who_shows_no_token_or_a_wrong_one_is_refused_by_the_sweeps_own_ray(swept: Swept) -> None:
    assert swept.strangers == {
        "none": "UNAUTHENTICATED",
        "wrong": "UNAUTHENTICATED",
        "own": "OK",
    }


def test_the_token_of_a_sweep_is_its_own_and_is_not_saved(swept: Swept) -> None:
    assert len(swept.token) == 64
    assert not (swept.folder / "home" / ".ray" / "auth_token").exists()
