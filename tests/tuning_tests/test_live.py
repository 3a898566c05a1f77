"""The report that is served while a sweep runs: on this machine alone, and it loads itself anew."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from chromium import browser, found
from command_line import Command, is_refused

from core.errors import UserError
from tuning.ledger import Ledger
from tuning.live import serving
from tuning.run import Run, load_run

Answer = tuple[int, dict[str, str], str]


@pytest.fixture
def address(sample_run: Run) -> Iterator[str]:
    with serving(sample_run.path) as address:
        yield address


def ask(address: str, path: str | None = None, *, host: str | None = None) -> Answer:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        headers = {} if host is None else {"Host": host}
        connection.request("GET", parts.path if path is None else path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode("utf-8")
    finally:
        connection.close()


def test_the_page_is_the_report_with_the_runs_beside_it(address: str, sample_run: Run) -> None:
    status, headers, page = ask(address)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Best configuration" in page
    assert f'<a href="/runs/{sample_run.name}/" aria-current="page">' in page
    assert "state.json" in page and "<img class" not in page


def test_the_state_is_that_of_status_with_a_stamp_that_changes_with_it(
    address: str, sample_run: Run
) -> None:
    before = json.loads(ask(address, f"/runs/{sample_run.name}/state.json")[2])
    again = json.loads(ask(address, f"/runs/{sample_run.name}/state.json")[2])
    assert before["counts"]["complete"] == 5
    assert again["stamp"] == before["stamp"]
    Ledger(sample_run.path, sample_run.spec, create=False).set_note("target", 12)
    assert json.loads(ask(address, f"/runs/{sample_run.name}/state.json")[2])["target"] == 12
    assert (
        json.loads(ask(address, f"/runs/{sample_run.name}/state.json")[2])["stamp"]
        != before["stamp"]
    )


def test_the_list_of_runs_stands_at_the_root(address: str, sample_run: Run) -> None:
    status, _, page = ask(address, "/")
    assert status == 200
    assert f'<a href="/runs/{sample_run.name}/">' in page


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "", "localhost:1"]
)
def test_who_asks_under_another_name_gets_nothing(address: str, host: str) -> None:
    status, _, text = ask(address, host=host)
    assert (status, text) == (421, "asked under another name")


@pytest.mark.parametrize(
    "path",
    ["/runs/none/", "/runs/../", "/runs/..%2f/", "/runs/sample/ledger.db", "/etc/passwd", "/runs/"],
)
def test_what_is_no_run_is_not_there(address: str, path: str) -> None:
    assert ask(address, path)[0] == 404


def test_nothing_can_be_changed(address: str) -> None:
    parts = urlsplit(address)
    for method in ("POST", "PUT", "DELETE"):
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        connection.request(method, parts.path)
        assert connection.getresponse().status == 501
        connection.close()


def test_it_listens_on_loopback_alone(address: str) -> None:
    assert urlsplit(address).hostname == "127.0.0.1"


def test_a_port_that_is_taken_is_refused(address: str, sample_run: Run) -> None:
    port = urlsplit(address).port
    assert port is not None
    with (
        pytest.raises(UserError, match=f"--port {port}: cannot be listened at"),
        serving(sample_run.path, port=port),
    ):
        pass


def test_a_folder_without_a_run_is_refused(tune: Command, tmp_path: Path) -> None:
    is_refused(tune("report", tmp_path, "--live"), "no run is there")


@pytest.mark.skipif(found() is None, reason="no Chromium on this machine: apt-get install chromium")
def test_an_open_page_follows_the_sweep(address: str, sample_run: Run, tmp_path: Path) -> None:
    shown = "document.querySelectorAll('.tile b')[4]?.textContent"
    with browser(tmp_path / "profile") as page:
        page.open(address, width=1280)
        assert page.value("document.querySelectorAll('.plot .main-svg').length") > 0
        before = page.value(shown)
        target = sample_run.target + 5
        Ledger(sample_run.path, load_run(sample_run.path).spec, create=False).set_note(
            "target", target
        )
        deadline = time.monotonic() + 60
        while page.value(shown) in (before, None) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert int(page.value(shown)) == int(before) + 5
        page.emulate(width=390)
        assert page.value("document.documentElement.scrollWidth") <= 390
        assert page.complaints == []
