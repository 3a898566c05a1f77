"""How many trials share a pass: what a person asks for, or the fastest of what was timed."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweep import WHY, problems, spec_of

from core.store.durable import commit_json
from tuning.dispatcher import Dispatcher
from tuning.events import Event, EventLog, Warned
from tuning.failures import FAILURE_FILE
from tuning.ledger import Ledger
from tuning.packing import Choice, choose
from tuning.resources import Cluster, Running, asked_slots, at_the_same_time


def running(changes: dict[str, object], *, cpus: float = 2, slots: int | None = None) -> Running:
    spec = spec_of({"resources.gpus_per_rank": 0} | changes)
    cluster = Cluster(cpus=cpus, gpus=0, memory_gib=99.0)
    return at_the_same_time(spec, cluster, slots=asked_slots(spec) if slots is None else slots)


def test_a_file_that_says_nothing_packs_nothing() -> None:
    assert asked_slots(spec_of()) == 1
    found = running({"budget.trials": 8})
    assert (found.trials, found.workers, found.slots) == (2, 2, 1)
    assert found.because == "2 cores of this machine"


@pytest.mark.parametrize(
    ("packing", "trials", "most", "expected"),
    [
        pytest.param(4, 20, "auto", (8, 2, 4), id="a-pack-on-each-core"),
        pytest.param(4, 6, "auto", (6, 2, 3), id="few-trials-are-spread-evenly"),
        pytest.param(4, 3, "auto", (3, 1, 3), id="no-pack-without-trials"),
        pytest.param(4, 20, 5, (5, 2, 3), id="no-more-trials-than-asked-for"),
        pytest.param(8, 20, 4, (4, 1, 4), id="one-pack-is-enough"),
    ],
)
def test_trials_are_spread_over_packs(
    packing: int, trials: int, most: int | str, expected: tuple[int, int, int]
) -> None:
    found = running(
        {"engine.packing": packing, "budget.trials": trials, "resources.max_concurrent": most}
    )
    assert (found.trials, found.workers, found.slots) == expected


def test_what_a_pack_is_says_why() -> None:
    found = running({"engine.packing": 4, "budget.trials": 20})
    assert found.because == "2 packs of 4 trials; 2 cores of this machine"


@pytest.mark.parametrize(
    ("seconds", "slots"),
    [
        pytest.param({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.5}, 4, id="the-fastest"),
        pytest.param({1: 1.0, 2: 0.95}, 1, id="too-small-a-gain"),
        pytest.param({1: 1.0, 2: 1.3}, 1, id="slower"),
        pytest.param({1: 1.0}, 1, id="nothing-else-fits"),
    ],
)
def test_auto_takes_the_fastest_size_that_pays(seconds: dict[int, float], slots: int) -> None:
    assert choose(seconds, least_gain=1.1).slots == slots


def test_auto_says_what_it_measured() -> None:
    assert choose({1: 0.4, 4: 0.1}, least_gain=1.1) == Choice(
        slots=4,
        because="a step takes each trial 400 ms with 1, 100 ms with 4 in a pass: 4.0 times as fast as alone",
    )


def test_packing_is_auto_or_a_number_and_needs_adapters() -> None:
    (found,) = problems({"engine.packing": 0})
    assert "packing: must be auto or a whole number from 1 to 256, got 0" in found
    space = {"optimizer.learning_rate": {"categorical": [1e-3, 1e-2]} | WHY}
    full = {"adapter": {"kind": "full"}, "engine": {"packing": 2}, "space": space}
    assert any("engine.packing: packs adapters on one frozen model" in p for p in problems(full))


def test_a_resumed_sweep_may_pack_otherwise() -> None:
    assert spec_of({"engine.packing": 4}).binding() == spec_of({"engine": {}}).binding()


class Heard:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def show(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.text)


def test_a_pack_that_ran_out_of_memory_gives_up_one_slot_and_not_one_for_each_trial(
    tmp_path: Path,
) -> None:
    spec, heard = spec_of({"budget.trials": 8}), Heard()
    log = EventLog(tmp_path / "events.jsonl", heard)
    ledger = Ledger(tmp_path, spec, create=True)
    dispatcher = Dispatcher(spec, tmp_path, ledger, log, target=8, concurrent=4)
    together = list(iter(dispatcher.next, None))
    assert len(together) == 4
    for assignment in together:
        assert assignment is not None
        record = {"kind": "MemoryError", "message": "", "is_user_error": False}
        commit_json(assignment.folder / FAILURE_FILE, record | {"exhausted": "machine"})
        dispatcher.broke(assignment.number)
    assert len(heard.warnings) == 1
    assert "3 trials at a time from now on" in heard.warnings[0]
    again = list(iter(dispatcher.next, None))
    assert [a.number for a in again if a] == [a.number for a in together if a][:3]
