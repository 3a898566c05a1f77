"""One driver for a run on whatever host: who is refused, who takes over, and that the one before writes no more."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from analytic_study import run_trial, spec_of, study_in
from postgres import Postgres

from core.errors import UserError
from tuning.database import Place, new_place, single_connections, study_id
from tuning.holder import Holder
from tuning.lease import LEASES, Lease, TakenOverError, Timing
from tuning.ledger import Ledger, Server, create_study
from tuning.outage import Outages
from tuning.records import LEDGER_FILE, copy_ledger

SOON = Timing(renew_s=0.01, expires_s=0.05, look_s=0.01)
ELSEWHERE = {"host": "other-host", "machine": "another boot", "pid": os.getpid()}


class Drivers:
    """A run, and drivers that want it."""

    def __init__(self, folder: Path, place: Place | None) -> None:
        self.folder, self.place, self.spec = folder, place, spec_of()
        create_study(folder, self.spec, place=place)
        self.opened: list[Ledger] = []
        self.engine = single_connections(place or folder / LEDGER_FILE)

    def lease(self, timing: Timing | None = None) -> Lease:
        number = study_id(self.engine, self.place)
        return Lease(self.engine, number, where="runs/x", timing=timing)

    def ledger(self, lease: Lease) -> Ledger:
        server = None
        if self.place is not None:
            outages = Outages(where="runs/x", database=self.place.shown)
            server = Server(place=self.place, outages=outages)
        ledger = Ledger(self.folder, self.spec, create=False, lease=lease, server=server)
        self.opened.append(ledger)
        return ledger

    def close(self) -> None:
        for ledger in self.opened:
            ledger.close()

    def rewrite(self, **values: object) -> None:
        """As another driver would have written it."""
        with self.engine.begin() as connection:
            connection.execute(sqlalchemy.update(LEASES).values(**values))


@pytest.fixture(params=["file", "server"])
def drivers(request: pytest.FixtureRequest) -> Drivers:
    found: Drivers = request.getfixturevalue(f"{request.param}_drivers")
    return found


@pytest.fixture
def server_drivers(postgres: Postgres, tmp_path: Path) -> Iterator[Drivers]:
    made = Drivers(tmp_path, new_place(postgres.url(postgres.database()), "x"))
    yield made
    made.close()


@pytest.fixture
def file_drivers(tmp_path: Path) -> Drivers:
    return Drivers(tmp_path, None)


def test_a_driver_holds_the_ledger_that_a_storage_puts_in_the_place_of_its_own(
    file_drivers: Drivers, tmp_path: Path
) -> None:
    """The copy does not say who drives the run; while there is none, none is made."""
    path, elsewhere, lost = tmp_path / LEDGER_FILE, tmp_path / "copy.db", list[bool]()
    file_drivers.lease().take()
    copy_ledger(path, elsewhere)
    lease = file_drivers.lease(SOON)
    lease.take(takeover=True)
    with lease.held(lambda: lost.append(True)):
        path.unlink()
        with pytest.raises(OSError, match="unable to open"):
            file_drivers.engine.connect()
        assert not path.exists()
        elsewhere.replace(path)
        assert lease.take() is None
        run_trial(file_drivers.ledger(lease), file_drivers.spec)
    assert not lost
    assert [t.state.name for t in study_in(tmp_path).trials] == ["COMPLETE"]


def test_a_driver_that_was_taken_over_cannot_write_any_more(drivers: Drivers) -> None:
    first, second = drivers.lease(), drivers.lease()
    assert first.take() is None
    before = drivers.ledger(first)
    run_trial(before, drivers.spec)
    number, _ = before.ask()
    taken_from = second.take(takeover=True)
    assert taken_from is not None and taken_from.pid == os.getpid()
    said = rf"^runs/x: another driver took this run over: pid {os.getpid()} on .* since .*Nothing finished is lost"
    for write in (
        before.ask,
        lambda: before.begin_attempt(number),
        lambda: before.fail(number, "too late"),
        lambda: before.set_note("ended", "failed"),
        lambda: before.set_report_metrics(0, {"retain_drop": 0.0}),
        lambda: before.set_evaluation(0, {"m": 0.0}, violations={}),
    ):
        with pytest.raises(TakenOverError, match=said):
            write()
    with pytest.raises(TakenOverError):
        first.refuse_lost()
    after = drivers.ledger(second)
    assert [n for n, _, _ in after.running()] == [number]
    after.fail(number, "in time")
    run_trial(after, drivers.spec)
    assert [t.state.name for t in study_in(drivers.folder).trials] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
    ]


def test_a_run_that_was_given_back_is_taken_at_once(drivers: Drivers) -> None:
    first = drivers.lease()
    first.take()
    first.release()
    assert drivers.lease().take() is None


def test_a_dead_process_of_this_machine_holds_nothing(drivers: Drivers) -> None:
    drivers.lease().take()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    drivers.rewrite(pid=ended.pid)
    assert drivers.lease().take() is None


def test_a_process_that_got_the_number_of_a_dead_one_is_told_from_it(drivers: Drivers) -> None:
    drivers.lease().take()
    drivers.rewrite(started="1")
    assert drivers.lease().take() is None


def test_only_this_machine_is_asked_about_its_processes() -> None:
    here = Holder.of_this_process()
    assert not here.is_dead
    assert replace(here, started="1").is_dead
    assert not replace(here, started="1", machine="another boot").is_dead


def test_a_driver_hears_that_it_was_taken_over_without_writing(drivers: Drivers) -> None:
    first, heard = drivers.lease(SOON), threading.Event()
    first.take()
    with first.held(heard.set):
        drivers.lease().take(takeover=True)
        assert heard.wait(60)
    with pytest.raises(TakenOverError, match="another driver took this run over: pid"):
        first.refuse_lost()


def test_giving_back_leaves_the_lease_of_whoever_took_over(drivers: Drivers) -> None:
    first, second = drivers.lease(), drivers.lease()
    first.take()
    second.take(takeover=True)
    first.release()
    run_trial(drivers.ledger(second), drivers.spec)


# On a server, which has a clock


def test_a_lease_of_another_host_counts_until_it_expires_by_the_servers_clock(
    server_drivers: Drivers,
) -> None:
    server_drivers.lease().take()
    server_drivers.rewrite(**ELSEWHERE)
    said = (
        r"^runs/x: another driver holds this run \(pid \d+ on other-host since .*\); wait for it, or stop it; if it "
        r"cannot be reached, .*unlearn-tune resume runs/x --takeover"
    )
    with pytest.raises(UserError, match=said):
        server_drivers.lease().take()
    server_drivers.rewrite(expires=sqlalchemy.text("extract(epoch from clock_timestamp()) - 1"))
    assert server_drivers.lease().take() is None


def test_a_sign_of_life_after_the_look_keeps_an_expired_lease(
    server_drivers: Drivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, late = server_drivers.lease(), server_drivers.lease()
    holder.take()
    server_drivers.rewrite(**ELSEWHERE, expires=0.0)
    look, looks = late._read, list[object]()

    def looked() -> object:
        looks.append(look())
        if len(looks) == 1:  # the holder wakes up between the look and the hand
            run_trial(server_drivers.ledger(holder), server_drivers.spec)
        return looks[-1]

    monkeypatch.setattr(late, "_read", looked)
    with pytest.raises(UserError, match="another driver holds this run"):
        late.take()


@pytest.mark.parametrize(
    ("skew_s", "zone"),
    [(-7200.0, "UTC"), (7200.0, "UTC"), (0.0, "Asia/Tokyo"), (3600.0, "Europe/Berlin")],
)
def test_a_hosts_clock_decides_nothing(
    drivers: Drivers, monkeypatch: pytest.MonkeyPatch, skew_s: float, zone: str
) -> None:
    """The holder took it by another clock than the one who comes later has."""
    drivers.lease().take()
    drivers.rewrite(**ELSEWHERE)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew_s)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        late = drivers.lease(SOON)
        if drivers.place is not None:
            with pytest.raises(UserError, match="another driver holds this run"):
                late.take()
            drivers.rewrite(expires=sqlalchemy.text("extract(epoch from clock_timestamp()) - 0.1"))
        assert late.take() is None
        run_trial(drivers.ledger(late), drivers.spec)
    finally:
        monkeypatch.undo()
        time.tzset()


# In a file, which has none


def test_a_holder_elsewhere_that_gives_no_sign_of_life_is_gone(file_drivers: Drivers) -> None:
    file_drivers.lease().take()
    file_drivers.rewrite(**ELSEWHERE)
    told: list[str] = []
    assert file_drivers.lease(SOON).take(tell=told.append) is None
    assert "on other-host since" in told[0] and "looking 0.05 s whether it lives" in told[0]


def test_a_holder_elsewhere_that_gives_one_is_not_disturbed(file_drivers: Drivers) -> None:
    holder = file_drivers.lease(SOON)
    holder.take()
    with holder.held(lambda: None):
        file_drivers.rewrite(**ELSEWHERE)
        with pytest.raises(
            UserError, match=r"another driver holds this run \(pid \d+ on other-host"
        ):
            file_drivers.lease(replace(SOON, expires_s=60.0)).take()


# The lock of the run folder beside it


def test_a_takeover_waits_for_the_lock_and_says_what_to_do_if_it_stays(
    file_drivers: Drivers,
) -> None:
    from tuning.driver import held_run

    with held_run(file_drivers.folder):
        refused = pytest.raises(UserError, match=r"another driver holds .* \(pid .*--takeover")
        with refused, held_run(file_drivers.folder):
            pass
        said = r"was taken over, but its driver \(pid \d+ on .*\) has not ended within 0.01 s; end that process, then"
        with pytest.raises(UserError, match=said), held_run(file_drivers.folder, ending_s=0.01):
            pass
    let_go = threading.Event()

    def hold() -> None:
        with held_run(file_drivers.folder):
            held.set()
            let_go.wait(60)

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    let_go.set()
    with held_run(file_drivers.folder, ending_s=60.0):
        thread.join()


def test_a_driver_ends_as_by_a_signal_and_says_who_took_over(file_drivers: Drivers) -> None:
    """Wherever it is: here it computes, and writes nothing."""
    from tuning.driven_run import taken_run
    from tuning.driver import signals_taken

    tell: Callable[[str], None] = lambda _: None  # noqa: E731
    with (
        pytest.raises(TakenOverError, match="another driver took this run over: pid"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("tuning.lease.Timing", lambda: SOON)
        with signals_taken(), taken_run(file_drivers.folder, None, takeover=False, tell=tell):
            file_drivers.lease().take(takeover=True)
            threading.Event().wait(60)
    assert drivers_row(file_drivers)[0] == os.getpid()


def drivers_row(drivers: Drivers) -> tuple[int, str]:
    with drivers.engine.connect() as connection:
        found = connection.execute(sqlalchemy.select(LEASES)).one()
    return found.pid, found.token
