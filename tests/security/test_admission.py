"""Who is let into a Ray: asked of Ray's own server, with token authentication and without."""

from __future__ import annotations

import base64
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from command_line import Command, is_refused, write

from tuning.admission import lets_strangers_in, refuse_open_cluster
from tuning.doctor import examine
from tuning.surroundings import lacks_token, make_token_private, own_token, token_file

SERVER = Path(str(ray.__file__)).parent / "core/src/ray/gcs/gcs_server"


@contextmanager
def cluster(folder: Path, *, mode: str) -> Iterator[str]:
    """The server that every client of a cluster meets first, alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [f"--gcs_server_port={port}", "--node-ip-address=127.0.0.1", "--session-name=x"]
    options += [f"--log_dir={folder}", f"--config_list={base64.b64encode(b'{}').decode()}"]
    env = os.environ | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "a" * 64}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([str(SERVER), *options], env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_a_cluster_that_asks_for_no_token_is_refused(
    tune: Command, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    with cluster(tmp_path, mode="disabled") as address:
        assert lets_strangers_in(address)
        for verb in (["sweep", write(tiny_sweep)], ["sweep", "sweep.yaml", "--name", "other"]):
            done = tune(*verb, "--address", address)
            is_refused(
                done,
                f"--address {address}: whoever reaches this cluster can run code on it",
                "--allow-insecure-cluster",
                after_it_began=True,
            )
    assert not list(Path("runs").iterdir())


def test_a_cluster_that_asks_for_a_token_is_not(tmp_path: Path) -> None:
    with cluster(tmp_path, mode="token") as address:
        assert not lets_strangers_in(address)
        refuse_open_cluster(address)


def test_where_nobody_answers_nothing_is_said_of_tokens() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ConnectionError):
            lets_strangers_in(address)


@pytest.mark.parametrize("verb", ["sweep", "resume", "repeat", "reproduce"])
def test_every_verb_that_joins_a_cluster_has_the_same_way_out(tune: Command, verb: str) -> None:
    text = tune(verb, "--help").out
    assert "--address" in text
    assert "--allow-insecure-clu" in text


def test_a_ray_of_our_own_asks_for_a_token_whatever_the_environment_says(tmp_path: Path) -> None:
    for mode in ("disabled", "token", None):
        given = {"HOME": str(tmp_path)} | ({} if mode is None else {"RAY_AUTH_MODE": mode})
        environment = dict(given)
        with own_token(environment):
            assert len(environment["RAY_AUTH_TOKEN"]) == 64
            assert "RAY_AUTH_MODE" not in environment  # Ray itself then asks for one
        assert environment == given
    assert lacks_token({"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"})
    assert not lacks_token({"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"})
    assert not lacks_token({"HOME": str(tmp_path)})


def test_the_token_of_clusters_is_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not make_token_private()
    file = token_file()
    file.parent.mkdir()
    file.write_text("a" * 64, encoding="utf-8")
    file.chmod(0o644)  # as Ray leaves it
    said = next(check for check in examine() if check.name == "ray token")
    assert (said.status, stat.S_IMODE(file.stat().st_mode)) == ("warn", 0o600)
    assert "could be read by others" in said.found
    again = next(check for check in examine() if check.name == "ray token")
    assert (again.status, again.found) == ("ok", f"{file}, private")
    assert "a" * 64 not in said.found + said.fix
