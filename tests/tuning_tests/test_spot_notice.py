"""What the clouds' metadata services answer, and when this machine is taken away."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tuning.cluster.spot import CLOUDS, wait_for_notice

ACTION = '{"action": "terminate", "time": "2026-11-26T12:00:00Z"}'


@contextmanager
def metadata(answers: Mapping[str, str], *, needs: Mapping[str, str]) -> Iterator[str]:
    """A metadata service: by path, what it answers who sends the headers that it needs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if any(self.headers.get(name) != value for name, value in needs.items()):
                self._answer(401, "")
            elif self.path in answers:
                self._answer(200, answers[self.path])
            else:
                self._answer(404, "")

        def do_PUT(self) -> None:
            has_ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            is_asked = self.path == "/latest/api/token" and has_ttl is not None
            self._answer(200 if is_asked else 403, "a-token" if is_asked else "")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


AWS = ("aws", {"X-aws-ec2-metadata-token": "a-token"}, "/latest/meta-data/spot/instance-action")
GCP = ("gcp", {"Metadata-Flavor": "Google"}, "/computeMetadata/v1/instance/preempted")


@pytest.mark.parametrize(
    ("cloud", "needs", "path", "before", "after"),
    [(*AWS, None, ACTION), (*GCP, "FALSE", "TRUE\n")],
    ids=["aws", "gcp"],
)
def test_the_notice_is_heard_when_it_comes(
    cloud: str, needs: Mapping[str, str], path: str, before: str | None, after: str
) -> None:
    answers = {} if before is None else {path: before}
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 3:
            answers[path] = after

    with metadata(answers, needs=needs) as root:
        wait_for_notice(CLOUDS[cloud], root=root, sleep=sleep)
    assert len(asked) == 3


@pytest.mark.parametrize("cloud", sorted(CLOUDS))
def test_a_service_that_does_not_answer_takes_nothing_away(cloud: str) -> None:
    with metadata({}, needs={"never": "sent"}) as root:
        assert not CLOUDS[cloud].is_leaving(root)
    assert not CLOUDS[cloud].is_leaving(root)  # nobody is there any more
