"""An S3 of the tests' own on loopback: moto's server, and one that answers with the errors it is told."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

BUCKET = "runs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "canary-key-id",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Of the environment, for whoever speaks to it."""


@contextmanager
def s3() -> Iterator[str]:
    """Address of a storage in a bucket that is there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        made = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made).close()
        yield address(host, port)
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
