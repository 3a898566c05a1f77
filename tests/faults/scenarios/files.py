"""Files that are torn or flipped on the disk between a killed driver and the next one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from faults.bench import Bench, Case
from faults.driver import REFUSED, Life
from faults.shim import CallFault, Mode
from faults.study import sweep
from faults.tally import Tally
from tuning.concluding import SAVED_LAST
from tuning.config import SweepSpec
from tuning.records import LEDGER_FILE, SPEC_FILE, attempt_folder

_PARTS = 8
_ENDED = 2
"""The trial that has committed all, its result too, and was not told yet."""
_ATTEMPT = attempt_folder(_ENDED, 1)
_JOURNAL = f"{LEDGER_FILE}-journal"


def _spec() -> SweepSpec:
    return sweep(trials=4, steps=3)


def _before_the_tell(bench: Bench, tally: Tally) -> Path:
    """A run whose driver was killed after it committed the result of a trial, before it told it."""
    tells = [
        n for n, e in enumerate(bench.control(_spec(), slots=1).events, 1) if "before tell" in e
    ]
    return _killed(bench, tally, Life(slots=1, killed_at=tells[_ENDED]))


def _within_a_transaction(bench: Bench, tally: Tally) -> Path:
    """A run whose driver was killed while it wrote to the ledger: what SQLite takes back lies beside it."""
    last = bench.control(_spec(), slots=1).n_calls
    for k in range(last * 2 // 3, last):
        fault = CallFault(at=k, mode=Mode.KILL_HALFWAY)
        left = _killed(bench, tally, Life(slots=1, calls=fault))
        journal = left / _JOURNAL
        if journal.exists() and any(journal.read_bytes()[:8]):
            return left  # its head says what is to be taken back
    raise AssertionError("no kill left a journal")


def _killed(bench: Bench, tally: Tally, life: Life) -> Path:
    kept = bench.folder / "killed"
    shutil.rmtree(kept, ignore_errors=True)
    with bench.case(_spec(), tally, "before the damage") as case:
        case.live(life)
        shutil.copytree(case.run_dir, kept)
    return kept


def _damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The content cut to every eighth of its length, and with a bit flipped in the middle of each."""
    for part in range(_PARTS):
        yield f"cut to {part}/{_PARTS}", content[: len(content) * part // _PARTS]
    for part in range(_PARTS):
        place = len(content) * (2 * part + 1) // (2 * _PARTS)
        flipped = bytes([content[place] ^ 4])
        yield f"flipped at byte {place}", content[:place] + flipped + content[place + 1 :]


def _damage(bench: Bench, tally: Tally, left: Path, name: str) -> None:
    """Each damage to one file: the next driver goes on to the same end, or names the file."""
    damages = list(_damages((left / name).read_bytes()))
    for index in bench.mine(0, len(damages) - 1):
        how, content = damages[index]
        with bench.case(_spec(), tally, f"{name} {how}") as case:
            shutil.copytree(left, case.run_dir, dirs_exist_ok=True)
            case.witness.see()
            (case.run_dir / name).write_bytes(content)
            _go_on(case, left, name, tally)


def _go_on(case: Case, left: Path, name: str, tally: Tally) -> None:
    case.witness.fault()
    ended = case.drivers.live(_spec(), case.run_dir)
    if ended.status == REFUSED:
        tally.refused += 1
        if Path(name).name.removesuffix("-journal") not in ended.said:
            case.witness.problem(f"the message does not name the file: {ended.said}")
        shutil.rmtree(case.run_dir)
        shutil.copytree(left, case.run_dir)  # as the message says: from a copy
    elif ended.status != 0:
        case.witness.problem(f"the driver ended with {ended.status}: {ended.said[-800:]}")
        return
    case.finish()


def damaged_files(bench: Bench, tally: Tally) -> None:
    """A file of a killed run is torn or flipped: specification, ledger, and what a trial committed."""
    left = _before_the_tell(bench, tally)
    of_trial = ("result.json", "history.jsonl", f"adapter/{SAVED_LAST[0]}", "trial.yaml")
    for name in (SPEC_FILE, LEDGER_FILE, *(f"{_ATTEMPT}/{name}" for name in of_trial)):
        _damage(bench, tally, left, name)


def damaged_journal(bench: Bench, tally: Tally) -> None:
    """The journal is torn or flipped from which SQLite takes a half-made transaction back."""
    _damage(bench, tally, _within_a_transaction(bench, tally), _JOURNAL)


SCENARIOS: Mapping[str, Callable[[Bench, Tally], None]] = {
    "damaged files": damaged_files,
    "damaged journal": damaged_journal,
}
