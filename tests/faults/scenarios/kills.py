"""Processes that are killed at an event: drivers, trials, and drivers whose trials live on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle, islice

from faults.bench import Bench
from faults.driver import Life
from faults.study import sweep
from faults.tally import Tally
from faults.witness import FINISHED
from tuning.records import LEDGER_FILE, read_ledger

_N_STORM = 30
_EVENTS_OF_A_TRIAL = 32
"""About as many as one of three steps has."""


def driver_at_every_event(bench: Bench, tally: Tally) -> None:
    """The driver is killed at its k-th event, for every k until there is none."""
    spec = sweep(trials=4, steps=3)
    for k in bench.from_first():
        with bench.case(spec, tally, f"event {k}") as case:
            ended = case.live(Life(killed_at=k))
            case.finish()
        if not ended.driver_kills:
            return


def driver_of_24_trials(bench: Bench, tally: Tally) -> None:
    """The driver of 24 trials is killed at events all over the sweep, and the driver that goes on, too."""
    spec = sweep()
    last = len(bench.control(spec).events)
    for k in bench.mine(20, last - 1, 43):
        with bench.case(spec, tally, f"event {k}") as case:
            case.live(Life(killed_at=k))
            case.live(Life(killed_at=1 + k % 37))
            case.finish()


def restart_storm(bench: Bench, tally: Tally) -> None:
    """A driver is killed again and again, 30 times: what is finished only grows."""
    spec = sweep(steps=3)
    for first in bench.mine(0, 1):
        with bench.case(spec, tally, f"storm {first}") as case:
            finished = 0
            lengths = cycle(_EVENTS_OF_A_TRIAL * n // 2 + first for n in (1, 2, 3, 4, 5))
            for killed_at in islice(lengths, 3 if bench.is_short else _N_STORM):
                if not case.live(Life(killed_at=killed_at)).driver_kills:
                    break
                if not (case.run_dir / LEDGER_FILE).exists():
                    continue
                trials, _driver = read_ledger(case.run_dir / LEDGER_FILE)
                now = sum(t.state in FINISHED for t in trials)
                if now < finished or len(trials) > spec.budget.trials:
                    case.witness.problem(f"{now} finished of {len(trials)}, {finished} before")
                finished = now
            case.finish()


def outlived_driver(bench: Bench, tally: Tally) -> None:
    """Trials go on when their driver was killed, and commit when they have a later attempt: it does not count."""
    spec = sweep(trials=4, steps=3)
    last = len(bench.control(spec).events)
    for k in bench.mine(25, last - 25, 5):
        with bench.case(spec, tally, f"event {k}") as case:
            case.live(Life(killed_at=k, outlived=True))
            case.witness.fault(case.finish().lived_on)


def trials_at_every_event(bench: Bench, tally: Tally) -> None:
    """The process of each trial is killed at an event of its own: another for each trial, and for some twice."""
    n_trials = 4 if bench.is_short else 24
    spec = sweep(trials=n_trials)
    for shift in bench.mine(0, 2):
        killed_at = {(n, 1): 1 + (n + 7 * shift) % 12 for n in range(n_trials)}
        killed_at |= {(n, 2): 1 + (n + shift) % 4 for n in range(0, n_trials, 3)}
        with bench.case(spec, tally, f"shift {shift}") as case:
            case.finish(Life(trials_killed_at=killed_at))


def trial_in_all_attempts(bench: Bench, tally: Tally) -> None:
    """A trial whose process is killed in each of its attempts fails, with the reason; the others do not notice."""
    spec = sweep(trials=4, steps=3)
    attempts = spec.budget.max_attempts
    for number in bench.mine(0, 3):
        with bench.case(spec, tally, f"trial {number}") as case:
            case.witness.spoils(number, said="its process died without a word")
            case.finish(Life(trials_killed_at={(number, k + 1): 1 for k in range(attempts)}))


SCENARIOS: Mapping[str, Callable[[Bench, Tally], None]] = {
    "driver killed at every event": driver_at_every_event,
    "driver of 24 trials killed, then the next one": driver_of_24_trials,
    "restart storm": restart_storm,
    "trials outlive their driver": outlived_driver,
    "trials killed at events": trials_at_every_event,
    "trial killed in all attempts": trial_in_all_attempts,
}
