"""optuna-dashboard on a run: what it shows is a copy, and whoever asks may read, on this machine, and no more."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from core.errors import UserError
from tuning.dashboard import dashboard
from tuning.ledger import Ledger
from tuning.records import LEDGER_FILE
from tuning.run import Run

Served = tuple[str, Callable[[], None]]


@pytest.fixture
def served(sample_run: Run) -> Iterator[Served]:
    pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")
    with dashboard(sample_run.path) as found:
        yield found


def ask(
    address: str, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[int, str]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8")
    finally:
        connection.close()


def studies(address: str) -> list[str]:
    status, text = ask(address, "/api/studies")
    assert status == 200
    return [study["study_name"] for study in json.loads(text)["study_summaries"]]


def test_it_shows_the_study_of_the_run(served: Served, sample_run: Run) -> None:
    address, _ = served
    assert studies(address) == [sample_run.name]
    status, page = ask(address, urlsplit(address).path)
    assert status == 200
    assert "Optuna Dashboard" in page


def test_the_copy_follows_the_ledger_when_it_is_brought_up_to_date(
    served: Served, sample_run: Run
) -> None:
    address, update = served  # copied here
    number, _ = Ledger(sample_run.path, sample_run.spec, create=False).ask()
    update()
    shown = json.loads(ask(address, "/api/studies/1?after=0")[1])
    assert number in [trial["number"] for trial in shown["trials"]]


@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT"])
def test_nothing_can_be_changed_through_it(served: Served, sample_run: Run, method: str) -> None:
    address, _ = served
    before = (sample_run.path / LEDGER_FILE).read_bytes()
    assert ask(address, "/api/studies/1", method=method)[0] == 405
    assert studies(address) == [sample_run.name]
    assert (sample_run.path / LEDGER_FILE).read_bytes() == before


def test_a_page_of_another_site_cannot_read_it_by_a_name_of_its_own(served: Served) -> None:
    assert ask(served[0], "/api/studies", host="evil.example:80")[0] == 421


def test_a_port_that_is_taken_is_refused_by_its_option(served: Served, sample_run: Run) -> None:
    port = urlsplit(served[0]).port
    assert port is not None
    with (
        pytest.raises(UserError, match=rf"^--port {port}: cannot be listened at: "),
        dashboard(sample_run.path, port=port),
    ):
        pass


def test_without_a_run_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run"), dashboard(tmp_path):
        pass
