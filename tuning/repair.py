"""A ledger mended from what trials committed to the run folder: rows that are missing, results that were not told.

A file is mended on a copy, which takes its place at the end. A study on a server is mended where it is, under the lease
of a driver; one that is gone there is made again from the copy in the run folder.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from core.errors import UserError
from core.store.durable import commit
from core.store.locks import try_lock
from tuning.config import SweepSpec
from tuning.database import (
    Place,
    has_study,
    noted_place,
    open_file,
    open_server,
    single_connections,
    study_id,
)
from tuning.lease import Lease
from tuning.ledger import Ledger, Server, copied, create_study
from tuning.mended import Found, Repair, mend
from tuning.outage import Outages
from tuning.records import (
    LEDGER_FILE,
    LOCK_FILE,
    SPEC_FILE,
    integrity_problem,
    journal_of,
    put_ledger,
    read_ledger,
    readable_states,
)
from tuning.run import read_spec


def repair(run_dir: Path, *, is_dry: bool = False, ledger: str | None = None) -> Repair:
    """Mend the ledger of a run.

    Args:
        run_dir: The run folder.
        is_dry: Change nothing.
        ledger: URL of the database that has the ledger, to log in anew, or where it was moved; if absent, that of the
            environment or of the run folder.

    Raises:
        UserError: If there is no run, a driver holds it, its database cannot be used, or its ``spec.yaml`` cannot be
            read: without it nothing says what its trials are.
        TakenOverError: If a driver took the run over meanwhile.
    """
    path = run_dir / SPEC_FILE
    if not path.is_file():
        raise UserError(
            f"{run_dir}: no run is there to repair ({SPEC_FILE} is expected, which says what its trials are); give "
            "the folder of a sweep, or restore the file from a copy"
        )
    spec, facts = read_spec(path)
    place = noted_place(facts.ledger, ledger, where=str(run_dir))
    with _held(run_dir), tempfile.TemporaryDirectory(prefix="unlearn-tune-") as folder:
        shadow = Path(folder) / run_dir.resolve().name  # a study is named after its folder
        shadow.mkdir()
        if place is None:
            return _file_mended(run_dir, shadow, spec, is_dry=is_dry)
        made = _study_mended_dry(run_dir, shadow, spec, place)
        made.is_dry = is_dry
        if made.is_needed and not is_dry:
            made = _study_mended(run_dir, spec, place)
    if place.shown != facts.ledger["url"]:
        made.notes.append(f"give `resume` its database, too: --ledger {place.shown}")
    return made


def _file_mended(run_dir: Path, copy: Path, spec: SweepSpec, *, is_dry: bool) -> Repair:
    for path in (run_dir / LEDGER_FILE, journal_of(run_dir / LEDGER_FILE)):
        if path.is_file():
            shutil.copyfile(path, copy / path.name)
    made, before = _opened(run_dir, copy, spec)
    made.is_dry = is_dry
    is_new = not (copy / LEDGER_FILE).exists()
    with closing(Ledger(copy, spec, create=is_new)) as ledger:
        mend(spec, ledger, made, before, is_new=is_new)
    if made.is_needed and not is_dry:
        made.copied_to = _put(copy / LEDGER_FILE, run_dir)
    return made


def _study_mended(run_dir: Path, spec: SweepSpec, place: Place) -> Repair:
    made, before = _found(run_dir, place)
    made.copied_to = _copied_aside(run_dir)
    is_new = False
    if made.ledger == "missing":
        is_new = not _copied_back(run_dir, spec, place, made)
        if is_new:
            create_study(run_dir, spec, place=place)
    engine = single_connections(place)
    lease = Lease(engine, study_id(engine, place), where=str(run_dir))
    lease.take()
    server = Server(place=place, outages=Outages(where=str(run_dir), database=place.shown))
    with (
        lease.held(lambda: None),  # if it is lost, the next write is refused
        closing(Ledger(run_dir, spec, create=False, lease=lease, server=server)) as ledger,
    ):
        mend(spec, ledger, made, before, is_new=is_new)
    return made


def _study_mended_dry(run_dir: Path, shadow: Path, spec: SweepSpec, place: Place) -> Repair:
    """On a copy in a file, which is thrown away."""
    made, before = _found(run_dir, place)
    if made.ledger == "missing":
        is_new = not _copied_back(run_dir, spec, shadow / LEDGER_FILE, made)
    else:
        into = partial(open_file, shadow / LEDGER_FILE)
        source = partial(open_server, place)
        is_new = not copied(source, into, spec, name=shadow.name, study=place.study)
    with closing(Ledger(shadow, spec, create=is_new)) as ledger:
        mend(spec, ledger, made, before, is_new=is_new)
    return made


def _found(run_dir: Path, place: Place) -> tuple[Repair, dict[int, str]]:
    """Whether the server has the study, and the states of its trials as the run folder knows them."""
    copy, shown = run_dir / LEDGER_FILE, f"{place.study} at {place.shown}"
    is_there = has_study(place)
    problem = "" if is_there else "the database has no such study"
    found: Found = "whole" if is_there else "missing"
    made = Repair(run=run_dir, place=shown, ledger=found, problem=problem)
    return made, readable_states(copy) if copy.is_file() else {}


def _copied_back(run_dir: Path, spec: SweepSpec, to: Place | Path, made: Repair) -> bool:
    """Make a study that is gone again from the copy in the run folder; whether that could be read."""
    copy = run_dir / LEDGER_FILE
    into = partial(open_server, to) if isinstance(to, Place) else partial(open_file, to)
    name = to.study if isinstance(to, Place) else to.parent.name
    if not copy.is_file() or not copied(partial(open_file, copy), into, spec, name=name):
        return False
    made.notes.append(f"the study is made again from {copy}, its copy after the last change")
    return True


def _opened(run_dir: Path, copy: Path, spec: SweepSpec) -> tuple[Repair, dict[int, str]]:
    """What is wrong with the copied ledger, which is then whole, or gone; and the states that could be read of it."""
    path, shown = copy / LEDGER_FILE, str(run_dir / LEDGER_FILE)
    if not path.exists():
        return Repair(run=run_dir, place=shown, ledger="missing", problem="no such file"), {}
    problem, before = integrity_problem(path), readable_states(path)
    if problem is None:
        try:
            read_ledger(path)
            opened = Ledger(copy, spec, create=False)
            opened.close()
            if opened.is_whole:
                return Repair(run=run_dir, place=shown, ledger="whole", problem=""), before
            problem = "trials that ended have lost what was tried"
        except UserError as err:
            problem = str(err.__cause__ or err)
        except (OSError, ValueError, KeyError, TypeError) as err:
            problem = f"{type(err).__name__}: {err}"
    damaged = path.rename(path.with_name("damaged.db"))
    if journal_of(path).exists():
        journal_of(path).rename(journal_of(damaged))
    if copied(
        partial(open_file, damaged), partial(open_file, path), spec, name=copy.name
    ) and _reads(copy, spec):
        return Repair(run=run_dir, place=shown, ledger="damaged", problem=problem), before
    path.unlink(missing_ok=True)
    return Repair(run=run_dir, place=shown, ledger="unreadable", problem=problem), before


def _reads(copy: Path, spec: SweepSpec) -> bool:
    try:
        read_ledger(copy / LEDGER_FILE)
        Ledger(copy, spec, create=False).close()
    except UserError:
        return False
    return True


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    """Hold the run against drivers.

    Raises:
        UserError: If one holds it.
    """
    with (run_dir / LOCK_FILE).open("a+") as file:
        if not try_lock(file):
            file.seek(0)
            raise UserError(
                f"{run_dir}: a driver holds this run ({file.read().strip()}); its ledger is in use: stop it first"
            )
        yield


def _put(made: Path, run_dir: Path) -> Path | None:
    """Let the ledger that was made take the place of the run's, of which a copy is kept."""
    kept = _copied_aside(run_dir)
    put_ledger(run_dir / LEDGER_FILE, partial(shutil.copyfile, made))
    return kept


def _copied_aside(run_dir: Path) -> Path | None:
    """A copy of the ledger that a run has, with the journal that belongs to it."""
    old = run_dir / LEDGER_FILE
    if not old.is_file():
        return None
    names = (old.with_name(f"{LEDGER_FILE}.before-repair-{n}") for n in count(1))
    kept = next(path for path in names if not path.exists())
    commit(kept, partial(shutil.copyfile, old))
    if journal_of(old).is_file():
        commit(journal_of(kept), partial(shutil.copyfile, journal_of(old)))
    return kept
