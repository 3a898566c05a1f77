"""The report of a run while it goes on: a page on this machine alone that looks for news itself.

Nothing can be changed through it. It answers this machine only, and only under this machine's own names, so that no
page of another site can read it by a name that it points here (DNS rebinding).
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from core.errors import UserError
from core.store.durable import finite
from tuning.config import RUN_NAME
from tuning.loopback import LOOPBACK, listening, own_names
from tuning.records import LEDGER_FILE, SPEC_FILE
from tuning.report import index_page, live_page
from tuning.results import status_json
from tuning.run import Run, load_run

_PAGE = re.compile(rf"/runs/({RUN_NAME[1:-1]})/(state\.json)?")
_CHANGING: Final = ("elapsed_s", "eta_s")


@contextmanager
def serving(run_dir: Path, *, port: int = 0) -> Iterator[str]:
    """Serve the report of a run, and those of the runs beside it, until the context ends.

    Args:
        run_dir: The run folder.
        port: Where to listen; any that is free if 0.

    Returns:
        Address of the run's page.

    Raises:
        UserError: If there is no run, its name is none, or the port is taken.
    """
    load_run(run_dir)
    folder = run_dir.resolve()
    if not re.fullmatch(RUN_NAME, folder.name):
        raise UserError(f"{run_dir}: {folder.name!r} is no name of a run; rename the folder")
    with listening(lambda: _Server(folder.parent, port), port=port) as server:
        yield f"http://{LOOPBACK}:{server.server_port}/runs/{folder.name}/"


class _Server(ThreadingHTTPServer):
    """Keeps the page of each run until it changes."""

    daemon_threads = True

    def __init__(self, runs: Path, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self._runs = runs
        self._drawing = threading.Lock()
        self._pages: dict[str, tuple[str, str]] = {}

    def run(self, name: str) -> Run | None:
        """A run of the folder."""
        path = self._runs / name
        return load_run(path) if (path / LEDGER_FILE).is_file() else None

    def listed(self) -> list[tuple[str, str]]:
        """Names and states of the runs of the folder."""
        found = list[tuple[str, str]]()
        for path in sorted(self._runs.iterdir()):
            is_run = (path / LEDGER_FILE).is_file() and (path / SPEC_FILE).is_file()
            if is_run and re.fullmatch(RUN_NAME, path.name):
                try:
                    found.append((path.name, load_run(path).state))
                except UserError:
                    found.append((path.name, "damaged"))
        return found

    def page(self, run: Run) -> str:
        """The page of a run as it stands; drawn once for each change."""
        with self._drawing:  # matplotlib's state is the process's
            stamp, before = stamp_of(run), self._pages.get(run.name)
            if before is None or before[0] != stamp:
                page = live_page(run, stamp=stamp, others=self.listed())
                self._pages[run.name] = before = (stamp, page)
            return before[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "unlearn-tune", ""

    def do_GET(self) -> None:
        """Answer with a page, a state, or why there is none."""
        if self.headers.get("Host", "") not in own_names(self.server.server_port):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "asked under another name")
            return
        try:
            self._serve()
        except UserError as err:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(err))

    def _serve(self) -> None:
        if self.path == "/":
            self._answer(HTTPStatus.OK, "text/html", index_page(self.server.listed()))
            return
        asked = _PAGE.fullmatch(self.path)
        run = self.server.run(asked[1]) if asked else None
        if asked is None or run is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "no run is there")
        elif asked[2]:
            state = finite({**status_json(run), "stamp": stamp_of(run)})
            self._answer(HTTPStatus.OK, "application/json", json.dumps(state))
        else:
            self._answer(HTTPStatus.OK, "text/html", self.server.page(run))

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode("utf-8")
        self.send_response(status)
        headers: Mapping[str, str] = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def stamp_of(run: Run) -> str:
    """What changes when the page would: all of the run's status but the time, and the last step of each trial."""
    state = {name: value for name, value in status_json(run).items() if name not in _CHANGING}
    steps = [(t.number, t.state, t.step) for t in run.trials]
    return json.dumps(finite({"state": state, "steps": steps}), sort_keys=True)
