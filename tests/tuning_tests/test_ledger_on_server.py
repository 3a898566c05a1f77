"""A ledger on a PostgreSQL server concludes what one in a file does, in outages, beside others; it is read anywhere."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from analytic_study import run_trial, spec_of, study_in
from driven_sweep import conclusions, drive
from half_written import leave_half_written
from postgres import PASSWORD, Postgres
from served_study import Opened, begun, on_server, told

from core.errors import UserError
from tuning.config import SweepSpec
from tuning.database import (
    Place,
    new_place,
    noted_place,
    open_server,
    released,
    single_connections,
    study_id,
)
from tuning.ledger import Ledger, create_study
from tuning.outage import LostLedgerError
from tuning.records import LEDGER_FILE, read_ledger
from tuning.run import load_run
from tuning.surroundings import LEDGER_VARIABLE


def sweep() -> SweepSpec:
    """A few short trials, of which the guard and the ranking pruner stop some; the first is a starting point."""
    pruning = {
        "retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0},
        "ranking": "successive_halving",
        "warmup_steps": 1,
        "reduction_factor": 2,
    }
    return spec_of(
        sampler={"name": "tpe", "seed": 4, "n_startup_trials": 2},
        start_from=[{"source": "a paper", "values": {"adapter.rank": 16}}],
        pruning=pruning,
        budget={"trials": 4, "max_steps": 3},
    )


# The same as in a file


def test_a_sweep_concludes_the_same_on_a_server_and_in_a_file(
    tmp_path: Path, place: Place, opened: Opened
) -> None:
    spec, control = sweep(), tmp_path / "control"
    control.mkdir()
    drive(spec, control)
    run_dir = begun(tmp_path / "x", spec, place)
    drive(spec, run_dir, ledger=opened(run_dir, spec))
    assert conclusions(run_dir) == conclusions(control)
    states = [t["state"] for t in conclusions(run_dir)]
    assert len(states) == 4 and "PRUNED" in states


def test_a_copy_that_was_half_written_is_made_anew(
    tmp_path: Path, place: Place, opened: Opened
) -> None:
    """Its driver was killed within a change of it, and another one has gone on elsewhere."""
    spec = sweep()
    run_dir, elsewhere = begun(tmp_path / "x", spec, place), tmp_path / "elsewhere"
    with closing(opened(run_dir, spec)) as ledger:
        drive(spec, run_dir, ledger=ledger, up_to=1)
    shutil.copytree(run_dir, elsewhere)
    leave_half_written(run_dir / LEDGER_FILE)
    with closing(opened(elsewhere, spec)) as ledger:
        drive(spec, elsewhere, ledger=ledger)
    opened(run_dir, spec)
    assert [told(t) for t in study_in(run_dir).trials] == on_server(place)


def test_the_copy_in_the_folder_is_the_study_itself_after_every_change(
    tmp_path: Path, place: Place, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, compared = sweep(), 0
    run_dir = begun(tmp_path / "x", spec, place)
    ledger = opened(run_dir, spec)
    for name in ("ask", "begin_attempt", "report", "finish", "set_note"):
        wrapped = getattr(ledger, name)

        def and_compare(*args: Any, wrapped: Any = wrapped, **options: Any) -> Any:
            nonlocal compared
            answer = wrapped(*args, **options)
            assert [told(t) for t in study_in(run_dir).trials] == on_server(place)
            compared += 1
            return answer

        monkeypatch.setattr(ledger, name, and_compare)
    run_trial(ledger, spec)
    ledger.set_note("target", 4)
    assert compared == 7
    assert study_in(run_dir).user_attrs == {"target": 4}
    assert study_in(run_dir).study_name == place.study


# Without the server


def test_a_copied_folder_is_read_without_the_server(
    tmp_path: Path, postgres: Postgres, place: Place, opened: Opened
) -> None:
    import shutil

    spec, run_dir = sweep(), tmp_path / "x"
    begun(run_dir, spec, place)
    drive(spec, run_dir, ledger=opened(run_dir, spec))
    copied = tmp_path / "elsewhere"
    postgres.stop()
    try:
        shutil.copytree(run_dir, copied)
        run = load_run(copied)
    finally:
        postgres.start()
    assert run.facts.ledger == {"url": place.shown, "study": place.study}
    assert [t.state for t in run.trials] == [t["state"] for t in conclusions(run_dir)]
    assert run.best is not None


def test_a_copy_is_not_driven(tmp_path: Path, place: Place, opened: Opened) -> None:
    spec = sweep()
    run_dir = begun(tmp_path / "x", spec, place)
    opened(run_dir, spec)
    with pytest.raises(
        UserError,
        match=r"ledger\.db: this is a copy for readers; .* x-\w{12} at postgresql://tuner@/",
    ):
        Ledger(run_dir, spec, create=False)


def test_a_copy_that_is_lost_or_behind_is_made_anew(
    tmp_path: Path, place: Place, opened: Opened
) -> None:
    spec = sweep()
    run_dir = begun(tmp_path / "x", spec, place)
    run_trial(opened(run_dir, spec), spec)
    whole = conclusions(run_dir)
    with closing(sqlite3.connect(run_dir / LEDGER_FILE)) as database, database:
        database.execute("UPDATE trials SET state = 'RUNNING'")
    opened(run_dir, spec)
    assert conclusions(run_dir) == whole
    (run_dir / LEDGER_FILE).write_bytes(b"no database")
    opened(run_dir, spec)
    assert conclusions(run_dir) == whole


# Outages


def test_an_outage_is_waited_out_and_loses_nothing(
    tmp_path: Path,
    postgres: Postgres,
    place: Place,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server goes in the middle of a trial and comes back when somebody was told."""
    spec, control, said = sweep(), tmp_path / "control", list[str]()
    control.mkdir()
    drive(spec, control)

    def tell(text: str) -> None:
        said.append(text)
        if "does not answer" in text:
            postgres.start()

    run_dir = begun(tmp_path / "x", spec, place)
    ledger = opened(run_dir, spec, tell=tell, tell_after_s=0.0)
    report, n_reports = ledger.report, 0

    def interrupted(*args: Any) -> Any:
        nonlocal n_reports
        n_reports += 1
        if n_reports == 2:
            postgres.stop()
        return report(*args)

    monkeypatch.setattr(ledger, "report", interrupted)
    drive(spec, run_dir, ledger=ledger)
    assert conclusions(run_dir) == conclusions(control)
    assert len(said) == 2 and PASSWORD not in "".join(said)
    assert said[0].startswith(f"{place.shown}: the ledger does not answer (")
    assert "pauses until it does, for 15 minutes at most" in said[0]
    assert said[1] == f"{place.shown}: the ledger answers again; the sweep goes on"


def test_an_outage_that_lasts_ends_the_driver_and_the_next_one_goes_on(
    tmp_path: Path, postgres: Postgres, place: Place, opened: Opened
) -> None:
    spec, control = sweep(), tmp_path / "control"
    control.mkdir()
    drive(spec, control)
    run_dir = begun(tmp_path / "x", spec, place)
    ledger = opened(run_dir, spec, give_up_after_s=0.1)
    run_trial(ledger, spec)
    postgres.stop()
    try:
        said = r"did not answer for \d+ s .*nothing finished is lost.*unlearn-tune resume .*/x$"
        with pytest.raises(LostLedgerError, match=said):
            ledger.ask()
        with pytest.raises(LostLedgerError):  # at once: it is not waited for again
            ledger.set_note("ended", None)
        with pytest.raises(UserError, match="the ledger cannot be opened: .*check that the server"):
            opened(run_dir, spec)
    finally:
        postgres.start()
    ended = opened(run_dir, spec, is_ending=lambda: True)  # a signal ends the waiting
    postgres.stop()
    try:
        with pytest.raises(LostLedgerError):
            ended.ask()
    finally:
        postgres.start()
    again = opened(run_dir, spec)
    assert again.n_begun() == 1
    for _ in range(spec.budget.trials - 1):
        run_trial(again, spec)
    with closing(Ledger(tmp_path / "control-2", spec, create=True)) as expected:
        for _ in range(spec.budget.trials):
            run_trial(expected, spec)
    assert conclusions(run_dir) == conclusions(tmp_path / "control-2")


def test_a_connection_that_breaks_at_any_statement_changes_nothing(
    tmp_path: Path, postgres: Postgres, place: Place, opened: Opened
) -> None:
    """Each change is made once, whether its connection broke before, in or after it."""
    spec, control = sweep(), tmp_path / "control"
    control.mkdir()
    drive(spec, control)
    run_dir = begun(tmp_path / "x", spec, place)
    ledger = opened(run_dir, spec)
    with breaking(postgres, place) as broken:
        drive(spec, run_dir, ledger=ledger)
    assert broken["before"] >= 4 and broken["after"] >= 4, broken
    assert conclusions(run_dir) == conclusions(control)
    assert len(on_server(place)) == spec.budget.trials


@contextmanager
def breaking(postgres: Postgres, place: Place) -> Iterator[dict[str, int]]:
    """Within the context some connections break: at a statement, and when a commit was made and not yet answered."""
    counts = {"statement": 0, "commit": 0, "before": 0, "after": 0}
    commit = sqlalchemy.Connection.commit
    next_break = 20

    def executed(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal next_break
        counts["statement"] += 1
        is_ours = conn.engine.name == "postgresql" and "pg_advisory" not in statement
        if is_ours and counts["statement"] >= next_break:
            counts["before"] += 1
            next_break = counts["statement"] + 150  # longer than any change, which is made anew
            pid = conn.connection.dbapi_connection.info.backend_pid
            postgres.ask(str(place.url.database), f"SELECT pg_terminate_backend({pid})")

    def committed(self: sqlalchemy.Connection) -> None:
        commit(self)
        if self.engine.name == "postgresql":
            counts["commit"] += 1
            if counts["commit"] % 3 == 0:
                counts["after"] += 1
                lost = Exception("the answer was lost")
                raise sqlalchemy.exc.OperationalError(
                    "COMMIT", {}, lost, connection_invalidated=True
                )

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", executed)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlalchemy.Connection, "commit", committed)
            yield counts
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", executed)


# Several runs


def test_runs_of_one_name_in_one_database_do_not_mix(
    tmp_path: Path, postgres: Postgres, place: Place, opened: Opened
) -> None:
    spec = sweep()
    other = new_place(place.url.render_as_string(hide_password=False), "x")
    assert other is not None and other.study != place.study and other.study.startswith("x-")
    first, second = begun(tmp_path / "x", spec, place), begun(tmp_path / "y", spec, other)
    ledgers = opened(first, spec), opened(second, spec, other)
    params = [[ledger.ask()[1] for ledger in ledgers] for _ in range(2)]
    assert all(a == b for a, b in params)
    ledgers[0].fail(0, "mine")
    assert [len(on_server(at)) for at in (place, other)] == [2, 2]
    assert [t.state for t in read_ledger(second / LEDGER_FILE)[0]] == ["RUNNING", "RUNNING"]
    assert [t.state for t in read_ledger(first / LEDGER_FILE)[0]] == ["FAIL", "RUNNING"]


def test_a_study_of_another_run_is_not_taken(tmp_path: Path, place: Place) -> None:
    begun(tmp_path / "x", sweep(), place)
    (tmp_path / "y").mkdir()
    with pytest.raises(
        UserError, match=rf"study {place.study}, which belongs to another run; give another --name"
    ):
        create_study(tmp_path / "y", sweep(), place=place)


OPENING = """
import sys
from tuning.database import new_place, open_server
open_server(new_place(sys.argv[1], "x")).engine.dispose()
"""


def test_several_that_open_an_empty_database_at_once_all_may(place: Place) -> None:
    """Drivers are processes: Alembic, which makes the tables, is not for several threads."""
    url = place.url.set(drivername="postgresql").render_as_string(hide_password=False)
    opening = [
        subprocess.Popen([sys.executable, "-c", OPENING, url], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[1] for process in opening]
    assert [process.returncode for process in opening] == [0, 0, 0], said


# Where it is, and who may read it


def test_no_password_is_written_anywhere(tmp_path: Path, place: Place, opened: Opened) -> None:
    spec = sweep()
    run_dir = begun(tmp_path / "x", spec, place)
    drive(spec, run_dir, ledger=opened(run_dir, spec))
    written = b"".join(p.read_bytes() for p in run_dir.rglob("*") if p.is_file())
    assert PASSWORD.encode() not in written
    assert b"postgresql://tuner@/" in written


def test_a_password_comes_from_the_environment(
    postgres: Postgres, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = str(place.url.database)
    without = new_place(postgres.url(database, password=None), "x")
    assert without is not None
    with pytest.raises(UserError, match="the ledger cannot be opened: .*no password supplied"):
        open_server(without)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with released(open_server(without)):
        pass
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv(LEDGER_VARIABLE, postgres.url(database))
    noted = noted_place(without.plain(), None, where="runs/x")
    assert noted is not None and noted.study == without.study
    with released(open_server(noted)):
        pass
    monkeypatch.setenv(LEDGER_VARIABLE, postgres.url("another"))
    other = noted_place(without.plain(), None, where="runs/x")
    assert other is not None and other.url.database == database and other.url.password is None


def test_a_server_that_cannot_be_used_is_one_error_without_the_password(
    postgres: Postgres, place: Place
) -> None:
    wrong = postgres.url(str(place.url.database), password="wrong-canary")
    for url, said in (
        (wrong, "password authentication failed"),
        (postgres.url("absent"), 'database "absent" does not exist'),
        ("postgresql://u:wrong-canary@127.0.0.1:1/x", "connection"),
    ):
        at = new_place(url, "x")
        assert at is not None
        with pytest.raises(UserError, match=said) as caught:
            open_server(at)
        assert "wrong-canary" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert "check that the server runs" in str(caught.value)


def test_a_study_that_the_database_has_not_is_named(place: Place) -> None:
    with (
        released(open_server(place)),
        pytest.raises(UserError, match=f"no study {place.study}, which the run folder names"),
    ):
        study_id(single_connections(place), place)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///x.db", "PostgreSQL is the only server that a ledger can lie on"),
        ("mysql://u:canary@h/d", "PostgreSQL is the only server"),
        ("nonsense", "a URL like postgresql://user@host/database is expected, got 'nonsense'"),
        ("postgresql://u:canary@h:x/d", "a URL like"),
        ("postgresql://u:canary@h", "the URL must name a database"),
        ("postgresql://u@h/d?password=canary", "a password stands before the host"),
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        new_place(url, "x")
    assert str(caught.value).startswith("--ledger: ") and "canary" not in str(caught.value)
    monkeypatch.setenv(LEDGER_VARIABLE, url)
    with pytest.raises(UserError, match=f"^{LEDGER_VARIABLE}: .*{said}"):
        new_place(None, "x")


def test_a_ledger_in_a_file_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="^--ledger: the ledger of runs/x is a file in its folder"):
        noted_place({}, "postgresql://u@h/d", where="runs/x")
    monkeypatch.setenv(LEDGER_VARIABLE, "postgresql://u@h/d")
    assert noted_place({}, None, where="runs/x") is None
