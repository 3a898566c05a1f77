"""Door to optuna-dashboard: its pages of a run's study, read on a copy, on this machine alone.

The dashboard itself has no login and deletes studies on request. Here it sees a copy of the ledger, answers this
machine only, under this machine's own names, and nothing but requests to read.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from core.errors import UserError
from tuning.loopback import LOOPBACK, listening, own_names
from tuning.records import LEDGER_FILE, copy_ledger
from tuning.run import load_run

EXTRA: Final = 'pip install -e ".[dashboard]"'
_READING: Final = ("GET", "HEAD")

_Application = Callable[[dict[str, Any], Callable[..., Any]], Any]
"""A WSGI application."""


@contextmanager
def dashboard(run_dir: Path, *, port: int = 0) -> Iterator[tuple[str, Callable[[], None]]]:
    """Serve optuna-dashboard on a copy of a run's ledger until the context ends.

    Args:
        run_dir: The run folder.
        port: Where to listen; any that is free if 0.

    Yields:
        Its address, and what brings the copy up to date.

    Raises:
        UserError: If there is no run, optuna-dashboard is not installed, or the port is taken.
    """
    load_run(run_dir)
    try:
        from optuna_dashboard import wsgi
    except ImportError as err:
        raise UserError(f"dashboard: optuna-dashboard is not installed; {EXTRA}") from err
    with tempfile.TemporaryDirectory(prefix="unlearn-tune-dashboard-") as scratch:
        copied = Path(scratch) / LEDGER_FILE

        def update() -> None:
            copy_ledger(run_dir / LEDGER_FILE, copied)

        update()
        with listening(lambda: _server(port), port=port) as server:
            server.set_app(_guarded(wsgi(f"sqlite:///{copied}"), port=server.server_port))
            yield f"http://{LOOPBACK}:{server.server_port}/dashboard/", update


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def _server(port: int) -> WSGIServer:
    return make_server(LOOPBACK, port, _refused, server_class=_Server, handler_class=_Quiet)


def _guarded(application: Any, *, port: int) -> _Application:
    """The application for whoever reads, and asks under this machine's own names (DNS rebinding)."""
    names = own_names(port)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ.get("HTTP_HOST") not in names:
            return _refused(environ, start, HTTPStatus.MISDIRECTED_REQUEST)
        if environ["REQUEST_METHOD"] not in _READING:
            return _refused(environ, start, HTTPStatus.METHOD_NOT_ALLOWED)
        return application(environ, start)

    return answer


def _refused(
    environ: Mapping[str, Any],
    start: Callable[..., Any],
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE,
) -> list[bytes]:
    start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [status.description.encode("utf-8")]
