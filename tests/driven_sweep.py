"""A sweep driven without Ray: the real ledger and dispatcher, and a worker whose probes are a formula.

Between every two writes of the driver and the worker the run folder can be copied as a kill would leave it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from analytic_study import Params, closure, probe

from core.config import SelectionConfig
from core.errors import UserError
from core.measuring.extent import is_overtaken, reaches_nothing
from core.measuring.landing import keeps_the_guard, may_land
from core.measuring.selection import Probe, StoppedBy, drop_at_target
from core.store.durable import append_line, commit_yaml
from tuning.concluding import SAVED_LAST, reconcile
from tuning.config import SweepSpec
from tuning.dispatcher import Assignment, Dispatcher
from tuning.events import EventLog, Silent
from tuning.ledger import Ledger
from tuning.records import EVENTS_FILE, LEDGER_FILE, SPEC_FILE
from tuning.storage.home import Workplace
from tuning.storage.keeping import Keeper
from tuning.storage.recovery import bring_if_absent, keeping

_CONCLUDED = {
    "recorded": "SELECT trial_id, key, value_json FROM trial_user_attributes WHERE key IN ('params', 'proposed_by', "
    "'stopped_by', 'reason', 'value', 'feasible', 'step', 'steps', 'metrics', 'violations')",
    "parameter": "SELECT trial_id, param_name, param_value FROM trial_params",
    "constraint": "SELECT trial_id, key, value_json FROM trial_system_attributes WHERE key LIKE 'constraints:%'",
    "intermediate": "SELECT trial_id, step, intermediate_value FROM trial_intermediate_values",
    "told": "SELECT trial_id, objective, value FROM trial_values",
}
_CHANGES = ("INSERT", "UPDATE", "DELETE")
TARGET_NLL = 1.5
"""Level that forgetting aims at, for the trials that land."""
ENDS: Mapping[str, Mapping[str, float]] = {
    "untouched": probe(0, 0.0).metrics,
    "target": {"forget_nll": TARGET_NLL},
}
"""Of the way to it, for the trials that leave probes out."""


def drive(
    spec: SweepSpec,
    run_dir: Path,
    *,
    at_once: int = 1,
    up_to: int | None = None,
    is_shared: bool = True,
    ledger: Ledger | None = None,
    storage: Path | str | None = None,
) -> str | None:
    """Bring the run to its budget, as a driver does, from wherever it stands.

    Args:
        spec: The sweep.
        run_dir: Its folder.
        at_once: Trials at the same time, which probe in turn.
        is_shared: Whether what the worker saves is seen by the driver.
        up_to: End when the trial of this number is proposed, and return its parameters as JSON.
        ledger: The run's ledger, opened; the file of the folder if absent, made where there is none.
        storage: Where the run is kept, too; what a driver that was killed left there is taken over.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    address = None if storage is None else str(storage)
    with suppress(UserError):  # none is there yet
        bring_if_absent(run_dir, address)
    with keeping(run_dir, address, takeover=True) as keeper:
        if not (run_dir / SPEC_FILE).exists():
            commit_yaml(run_dir / SPEC_FILE, {"sweep": spec.plain()})
        ledger = ledger or Ledger(run_dir, spec, create=not (run_dir / LEDGER_FILE).exists())
        keeper.promise(SPEC_FILE)
        return _drive(
            spec, run_dir, ledger, keeper, at_once=at_once, up_to=up_to, is_shared=is_shared
        )


def _drive(
    spec: SweepSpec,
    run_dir: Path,
    ledger: Ledger,
    keeper: Keeper,
    *,
    at_once: int,
    up_to: int | None,
    is_shared: bool,
) -> str | None:
    log = EventLog(run_dir / EVENTS_FILE, Silent())
    reconcile(spec, run_dir, ledger, log, keeper=keeper)
    dispatcher = Dispatcher(spec, run_dir, ledger, log, target=spec.budget.trials, keeper=keeper)
    running: list[tuple[int, Iterator[Probe]]] = []
    while True:
        while len(running) < at_once:
            assignment = dispatcher.next()
            if assignment is None:
                break
            if assignment.number == up_to:
                return str(conclusions(run_dir)[up_to]["recorded.params"])
            running.append((assignment.number, work(assignment, spec, is_shared=is_shared)))
        if not running:
            dispatcher.acknowledge_all()
            dispatcher.raise_error()
            return None
        number, worker = running.pop(0)
        if dispatcher.take(number, next(worker)):
            dispatcher.finish(number)
            dispatcher.acknowledge_all()
        else:
            running.append((number, worker))


def work(assignment: Assignment, spec: SweepSpec, *, is_shared: bool) -> Iterator[Probe]:
    """A worker: each probe's line is on disk before the probe is told."""
    workplace = assignment.home.enter()
    try:
        yield from _probes(assignment, spec, workplace, is_shared=is_shared)
    finally:
        workplace.leave()


def _probes(
    assignment: Assignment, spec: SweepSpec, workplace: Workplace, *, is_shared: bool
) -> Iterator[Probe]:
    params = {
        "optimizer.learning_rate": assignment.trial.optimizer.learning_rate,
        "adapter.rank": assignment.trial.adapter.rank,
    }
    selection, seen = assignment.trial.selection, list[Probe]()
    skipped: tuple[int, ...] = ()
    for step in range(1, spec.budget.max_steps + 1):
        is_last = step == spec.budget.max_steps
        if seen and not skipped and not is_last and _leaves_out(seen, selection):
            skipped = (step,)
            continue
        made = replace(analytic_probe(params, step, is_last=is_last), skipped=skipped)
        seen.append(_judged(made, selection))
        skipped = ()
        if selection.skip_probes is True and not is_last:
            overtaken = is_overtaken(seen, selection, **ENDS)
            seen[-1] = replace(seen[-1], is_overtaken=overtaken)
        if assignment.trial.lands and may_land(seen, selection, target_nll=TARGET_NLL):
            landed = _judged(analytic_landing(made), selection)
            if keeps_the_guard(landed, seen, selection):
                seen[-1] = replace(seen[-1], landed=landed)
        made = seen[-1]
        line: dict[str, Any] = {
            "step": step,
            "metrics": dict(made.metrics),
            "seconds": made.seconds,
            "stopped_by": made.stopped_by,
            "skipped": list(made.skipped),
            "is_overtaken": made.is_overtaken,
        }
        if made.landed is not None:
            line["landed"] = {
                "metrics": dict(made.landed.metrics),
                "intervals": dict(made.landed.intervals),
            }
        if is_shared:  # a real worker saves its best probe first
            saved = workplace.folder / "adapter" / SAVED_LAST[0]
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.touch()
        append_line(workplace.folder / "history.jsonl", line)
        workplace.commit()
        yield made


def _leaves_out(seen: list[Probe], selection: SelectionConfig) -> bool:
    return selection.skip_probes is True and reaches_nothing(seen, selection, **ENDS, ahead=2)


def analytic_landing(past: Probe) -> Probe:
    """A probe that is past the target, scaled back onto it: it keeps the guard with room."""
    metrics = dict(past.metrics) | {
        "forget_closure": 0.99,
        "retain_drop": 0.02,
        "forget_nll": TARGET_NLL,
        "landing_factor": TARGET_NLL / past.metrics["forget_nll"],
    }
    ends = {"retain_drop": (0.0, 0.04), "general_drop": (-0.02, 0.02)}
    return replace(past, metrics=metrics, intervals=ends)


def _judged(made: Probe, selection: SelectionConfig) -> Probe:
    """With the objective, where it is not the closure."""
    if not selection.is_minimized:
        return made
    value = drop_at_target(made.metrics, selection)
    return replace(made, metrics=dict(made.metrics) | {"drop_at_target": value})


def analytic_probe(params: Params, step: int, *, is_last: bool) -> Probe:
    """A closure that rises to its value at once; large rates damage, from the second step on."""
    damage = 0.0 if step == 1 or float(params["optimizer.learning_rate"]) < 3e-3 else 0.9
    stopped_by: StoppedBy | None = "budget" if is_last else None
    return probe(step, closure(params) * (0.8 + 0.05 * step), damage, stopped_by)


def conclusions(run_dir: Path) -> list[dict[str, Any]]:
    """What a sweep proposed and concluded, trial by trial; not which attempt it took, or how long."""
    with closing(sqlite3.connect(run_dir / LEDGER_FILE)) as database:
        trials = database.execute("SELECT trial_id, state FROM trials ORDER BY number").fetchall()
        shown = {trial_id: {"state": state} for trial_id, state in trials}
        for name, query in _CONCLUDED.items():
            for trial_id, key, value in database.execute(query):
                shown[trial_id][f"{name}.{key}"] = value
    return list(shown.values())


@dataclass
class Kills:
    """Copies of a run folder, one for every state in which a kill could leave it.

    Attributes:
        run_dir: The folder.
        copies: Where they go.
        taken: Them, in their order.
    """

    run_dir: Path
    copies: Path
    taken: list[Path] = field(default_factory=list)
    _seen: object = None
    _n_commits: int = 0

    def at_commit(self) -> None:
        """Before what the ledger's transaction changed is there."""
        self.copy()
        self._n_commits += 1

    def copy(self) -> None:
        """Keep the folder as it is, unless nothing that a driver reads has changed since the last time.

        Only between two writes of the driver itself: the thread beside it, which backs the ledger up, has files of
        its own there, which nobody reads after a kill.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        files = [p for p in self.run_dir.rglob("*") if p.is_file() and p.name != "events.jsonl"]
        sizes = {p: p.stat().st_size for p in files if not p.name.startswith((".", LEDGER_FILE))}
        state = (self._n_commits, (self.run_dir / LEDGER_FILE).exists(), sizes)
        if state != self._seen:
            self._seen = state
            target = self.copies / f"{len(self.taken):04d}"
            beside = shutil.ignore_patterns(f".{LEDGER_FILE}.backup*")
            shutil.copytree(self.run_dir, target, ignore=beside, copy_function=copy_if_there)
            self.taken.append(target)


def copy_if_there(source: str, target: str) -> None:
    """Copy a file; a hidden one may have been renamed meanwhile by the thread that backs the ledger up."""
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:
        if not Path(source).name.startswith("."):
            raise


@contextmanager
def unsynced() -> Iterator[None]:
    """Within the context nothing waits for the disk: what a kill leaves does not depend on it."""

    def opened(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", opened)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", opened)


@contextmanager
def every_kill(run_dir: Path, copies: Path) -> Iterator[Kills]:
    """Within the context, copy the folder before every write that reaches it."""
    kills, is_changed = Kills(run_dir, copies), False

    def executed(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal is_changed
        is_changed = is_changed or statement.lstrip().startswith(_CHANGES)

    def committed(conn: Any) -> None:
        nonlocal is_changed
        if is_changed:
            kills.at_commit()
        is_changed = False

    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        kills.copy()
        fsync(descriptor)

    def replaced(*names: Any, **options: Any) -> None:
        kills.copy()
        replace(*names, **options)

    listened: dict[str, Callable[..., Any]] = {
        "after_cursor_execute": executed,
        "commit": committed,
    }
    for event, listener in listened.items():
        sqlalchemy.event.listen(sqlalchemy.Engine, event, listener)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", synced)
            patch.setattr(os, "replace", replaced)
            yield kills
    finally:
        for event, listener in listened.items():
            sqlalchemy.event.remove(sqlalchemy.Engine, event, listener)
    kills.copy()
