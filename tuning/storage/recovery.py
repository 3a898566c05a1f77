"""A driver comes to a run in a storage: it claims it, and brings back what its own folder has not."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from core.errors import UserError
from core.store.checkpoints import CHECKPOINTS
from core.store.durable import commit, commit_json
from core.store.texts import read_json
from tuning.committed import PROPOSAL_FILE
from tuning.failures import FAILURE_FILE
from tuning.records import LEDGER_FILE, LOCK_FILE, SPEC_FILE, STORAGE_FILE, put_ledger
from tuning.samples import SAMPLES_FILE
from tuning.storage.address import below, checked, folder_of
from tuning.storage.backup import OWN, Backup
from tuning.storage.claims import DRIVERS, Claims
from tuning.storage.keeping import InPlace, InStorage, Keeper, fetch_word, latest_places
from tuning.storage.patience import Patience, log_pause
from tuning.storage.snapshots import Snapshots, fetch
from tuning.storage.store import PATIENCE_S, Store

SILENT_S = 120.0
"""A driver that put nothing for so long is taken for dead: it would have given four signs of life."""
_LOOK_S = 5.0
_AT_A_TIME = 8


def known_storage(run_dir: Path) -> str | None:
    """The storage that a run folder says its run is kept in, or ``None``.

    Raises:
        UserError: If what it says is damaged.
    """
    return _memory(run_dir)[0]


def claims_on(storage: str, name: str, *, tell: Callable[[str], None] = log_pause) -> Claims:
    """Claims on a run of a storage.

    Raises:
        UserError: If it is no address, or a folder that is not there.
    """
    address = checked(storage)
    folder = folder_of(address)
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--storage: {folder}: no such folder; make it, or mount it, on all nodes first"
        )
    store = Store(root=address, patience=Patience(seconds=PATIENCE_S, tell=tell))
    return Claims(store=store.at(name))


def refuse_stored(storage: str, name: str) -> None:
    """Refuse to begin a run where the storage holds one.

    Raises:
        UserError: If it does.
    """
    claims = claims_on(storage, name)
    if _with_ledger(claims) is not None:
        place = below(checked(storage), name)
        raise UserError(
            f"{place} holds a run already; go on with `unlearn-tune resume {place}`, or give another --name"
        )


def bring_back(claims: Claims, run_dir: Path) -> None:
    """Bring a run from its storage into a run folder; the ledger last, so that a half is none.

    Raises:
        UserError: If the storage holds no run of this name.
        StorageError: If it does not answer, or what it holds is damaged.
    """
    newest = _with_ledger(claims)
    if newest is None:
        raise UserError(
            f"{claims.store.address}: no run is there; give the storage and the name of a run, such as "
            "s3://BUCKET/PREFIX/NAME"
        )
    names = claims.store.names(DRIVERS)
    own = _own_files(names, ledger_of=newest)
    attempts = latest_places(claims, names)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        list(pool.map(lambda item: _bring_attempt(item[1], run_dir / item[0]), attempts.items()))
        files = {name: stored for name, stored in own.items() if name != LEDGER_FILE}
        list(pool.map(lambda item: _bring(claims.store, item[1], run_dir / item[0]), files.items()))
    put_ledger(run_dir / LEDGER_FILE, partial(_written, claims.store, own[LEDGER_FILE]))


def bring_if_absent(run_dir: Path, storage: str | None) -> None:
    """Have a run in its folder, to be read: where it is not, as a copy of what the storage holds.

    Raises:
        UserError: As :func:`bring_back`.
    """
    if storage is None or (run_dir / LEDGER_FILE).exists():
        return
    bring_back(claims_on(storage, run_dir.name), run_dir)
    _remember(run_dir, checked(storage), claim="")


@contextmanager
def keeping(
    run_dir: Path,
    storage: str | None,
    *,
    takeover: bool = False,
    tell: Callable[[str], None] = log_pause,
) -> Iterator[Keeper]:
    """Within the context a run, whose lock is held, is kept where it is to be.

    Args:
        run_dir: The run folder; what of it another driver knows better is brought from the storage.
        storage: Address of a storage; the one that the run folder names if absent.
        takeover: Fence off a driver that seems to live.
        tell: Is told what is waited for.

    Raises:
        UserError: If the storage holds another run, or a living driver; or the address is none.
        StorageError: If it does not answer.
    """
    known, mine = _memory(run_dir)
    address = known if storage is None else checked(storage)
    if address is None:
        yield InPlace(run_dir)
        return
    claims = claims_on(address, run_dir.name, tell=tell)
    claim = _come(claims, run_dir, mine, takeover=takeover, tell=tell)
    _remember(run_dir, address, claim=claim)
    backup = Backup(claims, claim, run_dir, tell=tell)
    backup.start()
    is_whole = False
    try:
        yield InStorage(claims, claim, run_dir, backup)
        is_whole = True
    finally:
        backup.close(is_whole=is_whole)


def _come(
    claims: Claims,
    run_dir: Path,
    mine: str | None,
    *,
    takeover: bool,
    tell: Callable[[str], None],
) -> str:
    """Claim the run; folder and storage then agree, whichever of them knew better.

    The folder does if its driver was the last to claim the run; else the storage does.
    """
    newest, is_here = claims.newest(), (run_dir / LEDGER_FILE).exists()
    stored = None if newest is None else _with_ledger(claims)
    if stored is not None and mine is None:
        what = "holds another run of this name" if is_here else "holds a run of this name already"
        place = claims.store.address
        raise UserError(
            f"{place} {what}; go on with it with `unlearn-tune resume {place}` from where there is no {run_dir}, or "
            "give another name"
        )
    is_behind = stored is not None and newest != mine
    if is_behind and newest is not None and not takeover:
        wait_for_silence(claims, newest, tell)
    claim = claims.claim()
    if is_behind:
        _set_aside(run_dir, claim, is_stale=bool(mine))
        bring_back(claims, run_dir)
    elif stored is None and is_here:
        _put_all(claims, claim, run_dir)
    return claim


def _put_all(claims: Claims, claim: str, run_dir: Path) -> None:
    """Put a run that was not kept in a storage so far; its ledger follows with the first round of the backup."""
    own = claims.of(claim)
    for path in (
        run_dir / SPEC_FILE,
        run_dir / SAMPLES_FILE,
        *run_dir.glob(f"trials/*/{PROPOSAL_FILE}"),
    ):
        if path.is_file():
            own.at(OWN).put_file(path.relative_to(run_dir).as_posix(), path)
    for folder in sorted(run_dir.glob("trials/*/attempt-*")):
        Snapshots(own.at(folder.relative_to(run_dir).as_posix())).put(folder)


def _memory(run_dir: Path) -> tuple[str | None, str | None]:
    """Address and claim that a run folder remembers; an empty claim in a copy that no driver worked in."""
    path = run_dir / STORAGE_FILE
    if not path.is_file():
        return None, None
    found = read_json(path)
    if not isinstance(found, Mapping) or not {"address", "claim"} <= found.keys():
        raise UserError(f"{path}: does not name a storage; remove it, and give --storage")
    return str(found["address"]), str(found["claim"])


def _remember(run_dir: Path, address: str, *, claim: str) -> None:
    commit_json(run_dir / STORAGE_FILE, {"address": address, "claim": claim})


def _with_ledger(claims: Claims) -> str | None:
    """The newest claim whose driver left a ledger."""
    for name in reversed(claims.names()):
        if claims.of(name).has(f"{OWN}/{LEDGER_FILE}"):
            return name
    return None


def wait_for_silence(claims: Claims, newest: str, tell: Callable[[str], None]) -> None:
    """Return when the driver of the newest claim has put nothing for long enough to be taken for dead.

    Raises:
        UserError: If it puts something.
    """
    silent_s = claims.silent_s(newest)
    if silent_s is None or silent_s >= SILENT_S:
        return
    holder, sleep = claims.holder(newest), claims.store.patience.sleep
    tell(
        f"the last driver of this run ({holder}) wrote to the storage {silent_s:.0f} s ago; waiting until it has been "
        f"silent for {SILENT_S:.0f} s (--takeover does not wait)"
    )
    while silent_s is not None and silent_s < SILENT_S:
        sleep(_LOOK_S)
        before, silent_s = silent_s, claims.silent_s(newest)
        if silent_s is not None and silent_s < before:
            raise UserError(
                f"{claims.store.address}: another driver holds this run ({holder}) and writes to it; wait for it, or "
                "stop it, or give --takeover to fence it off"
            )


def _set_aside(run_dir: Path, claim: str, *, is_stale: bool) -> None:
    """Put what another driver knows better out of the way; it stays in a hidden folder."""
    if not is_stale:
        return
    aside = run_dir / f".before-{claim}"
    aside.mkdir()
    for path in list(run_dir.iterdir()):
        if path.name != LOCK_FILE and not path.name.startswith("."):
            path.rename(aside / path.name)


def _own_files(names: list[str], *, ledger_of: str) -> dict[str, str]:
    """Files of the run folder that drivers put, and where the last of each is; the ledger of one driver."""
    found: dict[str, str] = {}
    for name in sorted(names):  # by claim
        drivers, claim, own, *inner = name.split("/")
        if drivers != DRIVERS or own != OWN or any(p.startswith(".") or "\\" in p for p in inner):
            continue
        if inner != [LEDGER_FILE] or claim == ledger_of:
            found["/".join(inner)] = name
    if SPEC_FILE not in found:
        raise UserError(
            f"the storage holds a ledger and no {SPEC_FILE} for it; restore it from an older version"
        )
    return found


def _bring(store: Store, stored: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    commit(path, lambda temporary: _written(store, stored, temporary))


def _written(store: Store, stored: str, path: Path) -> None:
    store.fetch(stored, path)


def _bring_attempt(store: Store, folder: Path) -> None:
    fetch(store, folder, without=CHECKPOINTS)
    fetch_word(store, folder / FAILURE_FILE)
