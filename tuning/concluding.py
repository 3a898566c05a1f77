"""How an attempt ends in the run folder and the ledger, also when its driver died before it could say so."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from core.config import TrialConfig
from core.errors import FileError
from core.measuring.selection import GuardVerdict, Probe
from core.store.durable import commit_json, finite
from core.store.told import RESULT_FILE
from tuning.committed import (
    DECISIONS,
    committed_probes,
)
from tuning.config import SweepSpec
from tuning.events import (
    EventLog,
    TrialBroke,
    TrialEnded,
    Warned,
)
from tuning.failures import (
    FAILURE_FILE,
    known_failures,
)
from tuning.ledger import Ledger
from tuning.objective import Outcome, conclude
from tuning.records import attempt_folder, is_adapter_damaged
from tuning.resuming import remove_checkpoints, remove_left_checkpoints
from tuning.screening import probe_problem
from tuning.space import bind
from tuning.storage.keeping import InPlace, Keeper

SAVED_LAST = ("adapter_model.safetensors", "config.json")
"""What a saved adapter, or a whole model, has when it is complete."""


class LostAdapterError(Exception):
    """A worker committed its best adapter, and it is not there.

    Args:
        folder: Where it should be.
    """

    def __init__(self, folder: Path) -> None:
        """Say where, and what to look at."""
        super().__init__(
            f"its best probe is feasible, but {folder} holds no adapter: the run folder is not the one that the "
            "worker writes to; put it on storage that all nodes share"
        )


def conclude_attempt(
    ledger: Ledger,
    run_dir: Path,
    number: int,
    attempt: int,
    probes: list[Probe],
    trial: TrialConfig,
    verdict: GuardVerdict | None,
    *,
    duration_s: float,
) -> Outcome:
    """Commit ``result.json`` of an ended attempt, then tell the ledger.

    Raises:
        LostAdapterError: If the probe that counts is feasible and its adapter is not in the run folder.
    """
    outcome = conclude(probes, trial.selection, verdict)
    folder = attempt_folder(number, attempt)
    saved = run_dir / folder / "adapter"
    is_saved = any((saved / name).is_file() for name in SAVED_LAST)
    if outcome.feasible and not is_saved:
        raise LostAdapterError(saved)
    adapter = f"{folder}/adapter" if outcome.feasible else None
    record = {
        "number": number,
        "attempt": attempt,
        **asdict(outcome),
        "adapter": adapter,
        "duration_s": duration_s,
        DECISIONS: ledger.decided(number),
    }
    commit_json(run_dir / folder / RESULT_FILE, finite(record))
    ledger.finish(number, outcome, adapter=adapter, duration_s=duration_s)
    remove_checkpoints(run_dir, number)
    return outcome


def reconcile(
    spec: SweepSpec, run_dir: Path, ledger: Ledger, log: EventLog, *, keeper: Keeper | None = None
) -> None:
    """Adopt what interrupted trials committed before their driver died.

    The committed history of each running trial is replayed through guard and pruner. A trial that had
    ended, or would have been stopped, is told; the others run again under the same number, from their newest
    checkpoint. So does one whose history or adapter is not what it committed.

    Args:
        spec: The sweep.
        run_dir: Its folder.
        ledger: Its study.
        log: Where events go.
        keeper: Knows where attempts committed; in the run folder if absent.
    """
    keeper = keeper or InPlace(run_dir)
    ledger.finish_births()
    remove_left_checkpoints(run_dir, running={number for number, _, _ in ledger.running()})
    for number, params, attempt in ledger.running():
        if attempt == 0:
            continue
        trial = bind(spec, params, where=f"trial {number}")
        keeper.collect(number, attempt)
        name = attempt_folder(number, attempt)
        folder = run_dir / name
        failure = next(known_failures([folder]), None)
        if failure is not None and failure.is_final:
            ledger.fail(number, failure.reason)  # its driver died before it could
            keeper.secure(f"{name}/{FAILURE_FILE}")
            log.emit(
                TrialBroke(number=number, attempt=attempt, reason=failure.reason, is_final=True)
            )
            continue
        try:
            seen, verdict, unfit = _replayed(ledger, run_dir, number, attempt, trial)
        except FileError as err:
            log.emit(
                Warned(text=f"trial {number} runs again, nothing of this attempt is taken: {err}")
            )
            continue
        if unfit is not None:
            ledger.fail(number, unfit)
            keeper.secure()
            log.emit(TrialBroke(number=number, attempt=attempt, reason=unfit, is_final=True))
            continue
        if verdict is None and (not seen or seen[-1].stopped_by is None):
            continue
        if is_adapter_damaged(run_dir, number, attempt):
            log.emit(
                Warned(text=f"trial {number} runs again: {folder / 'adapter'} is not what it saved")
            )
            continue
        with suppress(LostAdapterError):  # then it runs again
            outcome = conclude_attempt(
                ledger,
                run_dir,
                number,
                attempt,
                seen,
                trial,
                verdict,
                duration_s=seen[-1].seconds,
            )
            keeper.secure(f"{name}/{RESULT_FILE}")
            log.emit(TrialEnded(number=number, outcome=outcome, adopted=True))
            keeper.forget_checkpoints(number)


def _replayed(
    ledger: Ledger, run_dir: Path, number: int, attempt: int, trial: TrialConfig
) -> tuple[list[Probe], GuardVerdict | None, str | None]:
    """An attempt's committed probes up to the one that ended it, the verdict on that, and why it is no probe.

    Raises:
        FileError: If its history is damaged.
    """
    seen: list[Probe] = []
    for probe in committed_probes(run_dir / attempt_folder(number, attempt)):
        unfit = probe_problem(probe, trial.selection)
        if unfit is not None:
            return seen, None, unfit
        seen.append(probe)
        verdict = ledger.report(number, attempt, seen)
        if verdict is not None or probe.stopped_by is not None:
            return seen, verdict, None
    return seen, None, None
