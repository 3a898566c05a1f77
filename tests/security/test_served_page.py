"""The page of a sweep that goes on: for this machine, for reading, and for nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tuning.live import serving
from tuning.run import Run


@pytest.fixture
def port(sample_run: Run) -> Iterator[int]:
    (sample_run.path.parent / "secret.txt").write_text("a secret of this machine")
    with serving(sample_run.path) as address:
        yield int(urlsplit(address).port or 0)


def raw(port: int, request: str) -> str:
    """What is answered to a request that no library would write."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode("utf-8", "replace")


PATHS = [
    *("/../secret.txt", "/runs/../secret.txt", "/runs/sample/../../secret.txt", "//etc/passwd"),
    *("/runs/%2e%2e/secret.txt", "/runs/..%5c..%5csecret.txt", "/runs/sample/ledger.db"),
    *("/runs/sample/spec.yaml", "/runs/sample/%00", "/runs/sample/?x", "/runs/sample/#x"),
    *(
        "http://evil.example/runs/sample/",
        "file:///etc/passwd",
        "/runs/sample",
        "*",
        "/runs/.hidden/",
    ),
    *("/runs/sample//", "/runs/sample/state.json/", "/runs/samplé/", "/RUNS/sample/"),
]


@pytest.mark.parametrize("path", PATHS)
def test_no_other_path_is_answered(port: int, path: str) -> None:
    said = raw(port, f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    assert said.split(" ", 2)[1] in ("400", "404")
    assert "secret" not in said.partition("\r\n\r\n")[2]


HOSTS = [
    *("Host: evil.example", "Host: 127.0.0.1.evil.example:{port}", "Host: localhost:{port}.evil"),
    *("Host: 127.0.0.1:{port}@evil.example", "Host: [::1]:{port}", "Host: 0.0.0.0:{port}"),
    *("Host: 127.1:{port}", "Host: 2130706433:{port}", "Host:", "X: y", "Host: LOCALHOST.:{port}"),
    *("Host: evil.example\r\nHost: 127.0.0.1:{port}", "X-Forwarded-Host: 127.0.0.1:{port}"),
]


@pytest.mark.parametrize("host", HOSTS)
def test_who_asks_under_another_name_is_told_nothing(port: int, host: str) -> None:
    """DNS rebinding has a browser ask us under the attacker's own name."""
    said = raw(port, f"GET /runs/sample/ HTTP/1.0\r\n{host.format(port=port)}\r\n\r\n")
    assert said.split(" ", 2)[1] == "421"
    assert "sample" not in said


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "CONNECT", "TRACE", "get", "X"]
)
def test_nothing_but_reading_is_answered(port: int, method: str, sample_run: Run) -> None:
    before = (sample_run.path / "ledger.db").read_bytes()
    for body in ("", "Content-Length: 4\r\n\r\nabcd"):
        said = raw(port, f"{method} / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{body}\r\n")
        assert said.split(" ", 2)[1] == "501"
    assert (sample_run.path / "ledger.db").read_bytes() == before


@pytest.mark.parametrize("path", ["/", "/runs/sample/", "/runs/sample/state.json", "/none"])
def test_no_other_site_may_read_or_frame_it(port: int, path: str) -> None:
    asked = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nOrigin: https://evil.example\r\n\r\n"
    head = raw(port, asked).partition("\r\n\r\n")[0].lower()
    assert "access-control-" not in head
    for header in (
        "x-frame-options: deny",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ):
        assert header in head
    assert "python" not in head


def test_it_listens_on_loopback_alone(port: int) -> None:
    import psutil

    own = [c for c in psutil.Process().net_connections() if c.laddr and c.laddr.port == port]
    assert {c.laddr.ip for c in own if c.status == "LISTEN"} == {"127.0.0.1"}


def test_a_link_beside_the_runs_is_not_followed_out(
    port: int, sample_run: Run, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("ledger.db", "spec.yaml"):
        (outside / name).write_bytes((sample_run.path / name).read_bytes())
    copied = sample_run.path.parent / "linked"
    copied.mkdir()
    for name in ("ledger.db", "spec.yaml"):
        (copied / name).symlink_to(outside / name)
    said = raw(port, f"GET /runs/linked/ HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    assert said.split(" ", 2)[1] == "500"
    assert "leads out of" in said
