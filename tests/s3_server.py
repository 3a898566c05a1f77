"""An S3 of the tests' own on loopback: moto's server, and one that answers with the errors it is told."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

BUCKET = "runs"
_LOOPBACK = "127.0.0.1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "canary-key-id",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Of the environment, for whoever speaks to it."""


class S3:
    """A server that can be away for a while: what it holds, and its port, are the same afterwards."""

    def __init__(self) -> None:
        """Started, with a bucket."""
        self._port = 0
        self.start()
        made = urllib.request.Request(f"http://{_LOOPBACK}:{self._port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made).close()

    @property
    def address(self) -> str:
        """Of a storage in its bucket."""
        return address(_LOOPBACK, self._port)

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address=_LOOPBACK, port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def s3() -> Iterator[str]:
    """Address of a storage in a bucket that is there."""
    server = S3()
    try:
        yield server.address
    finally:
        server.stop()


def address(host: str, port: int, *, bucket: str = BUCKET) -> str:
    """Of a storage behind a port."""
    return f"s3://{bucket}/sweeps?scheme=http&endpoint_override={host}:{port}&region=us-east-1"


@contextmanager
def refusing(status: int, code: str, *, times: int) -> Iterator[tuple[str, list[str]]]:
    """Address of a server that refuses so often, and then takes all; and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            refuses = len(asked) <= times
            text = f"<Error><Code>{code}</Code><Message>said by the server</Message></Error>"
            body = text.encode() if refuses else b""
            self.send_response(status if refuses else 200)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address("127.0.0.1", server.server_address[1]), asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
