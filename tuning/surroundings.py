"""What the driver's own Ray and this process need of their surroundings, settled before anything starts.

Imports no Ray: `doctor` says the same of a machine as a sweep does on it.
"""

import codecs
import locale
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

import psutil

from core.errors import UserError, first_line

LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket, at most: ``sun_path`` of Linux holds 108 with its end."""
_BELOW = "/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest that Ray puts below its folder."""
ROOM = LONGEST_SOCKET - len(_BELOW)
"""Bytes of the path of Ray's folder, at most."""
SPIN: Final = "20000"
"""Turns that a thread of libgomp waits for the others before it sleeps. Its own number is fifteen times as many: where
other processes want the cores, threads then spin most of the time for one that was put to sleep, measured up to
tenfold. Sleeping at once costs twice the time of a decomposition, whose parallel parts are short."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's shared memory: what trials and the driver send each other is small."""

LEDGER_VARIABLE: Final = "UNLEARN_TUNE_LEDGER"
"""Environment variable that names the database of new runs' ledgers, and may bring the password of one."""
ON_A_NETWORK: Final = (
    "{folder}: the ledger is a SQLite file on a network file system ({kind}), on whose locks and syncs SQLite cannot "
    "rely; keep it on a server (--ledger postgresql://user@host/database), or the run folder on a local disk "
    "(--storage shares what its trials commit)"
)
"""What is said of a ledger that lies there, with ``folder`` and ``kind``."""
_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
        *("glusterfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "panfs", "wekafs", "virtiofs"),
    )
)
_LOCAL_FUSE = frozenset(("fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.portal", "fuse.snapfuse"))
_LOOPBACK_TIMEOUT_S = 5.0
_TOKEN, _TOKEN_PATH, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def folder_candidates(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where Ray may keep sockets and logs, the preferred first: as Ray would, then what every Linux has."""
    named = [environment.get("RAY_TMPDIR"), environment.get("TMPDIR")]
    ray = [Path(folder) / "ray" for folder in (*named, "/tmp") if folder]  # noqa: S108
    own = Path("/tmp") / f"ray-{os.getuid()}"  # noqa: S108 - another user's folder may be in the way
    there = environment.get("XDG_RUNTIME_DIR")
    return [*ray, own, *([Path(there) / "ray"] if there else []), Path("/dev/shm") / own.name]  # noqa: S108


def folder_problem(folder: Path) -> str | None:
    """What keeps Ray from using a folder, or ``None``."""
    size = len(os.fsencode(folder))
    if size > ROOM:
        return f"{folder} has {size} bytes; with Ray's sockets below it, at most {ROOM} fit into a Unix socket's path"
    if not can_be_written(folder):
        return f"{folder} cannot be written"
    return None


def ray_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The first folder that Ray can use.

    Raises:
        UserError: If there is none.
    """
    candidates = folder_candidates(environment)
    problems = [(folder, folder_problem(folder)) for folder in candidates]
    for folder, problem in problems:
        if problem is None:
            return folder
    raise UserError(
        "RAY_TMPDIR: Ray needs a folder that can be written, with a short path, got "
        + "; ".join(problem for _, problem in problems if problem)
        + "; set RAY_TMPDIR to one"
    )


def can_be_written(folder: Path) -> bool:
    """Whether this user may write into a folder, or make it. It is tried: rights alone do not say so."""
    try:
        with tempfile.TemporaryFile(dir=existing_part(folder)):
            return True
    except OSError:
        return False


def existing_part(path: Path) -> Path:
    """The longest part of a path that exists, as far as this user may look."""
    whole = path.absolute()
    return next(p for p in (whole, *whole.parents) if os.path.exists(p))  # noqa: PTH110 - this one never raises


def network_file_system(folder: Path) -> str | None:
    """Kind of the network file system that a folder lies on, such as ``nfs4``; ``None`` if its disk is local."""
    place, kind, longest = str(existing_part(folder).resolve()), "", -1
    for mounted in psutil.disk_partitions(all=True):
        at = mounted.mountpoint.rstrip("/")
        if (
            f"{place}/".startswith(f"{at}/") and len(at) >= longest
        ):  # of two at one place the later one is seen
            kind, longest = mounted.fstype, len(at)
    is_network = kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
    return kind if is_network else None


def loopback_problem() -> str | None:
    """What keeps processes of this machine from reaching each other, or ``None``.

    A network namespace begins with its loopback interface down; Ray would wait for its own server.
    """
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=_LOOPBACK_TIMEOUT_S),
        ):
            return None
    except OSError as err:
        return f"127.0.0.1 cannot be reached: {first_line(err)}; bring the loopback interface up: ip link set lo up"


def shell_problem(environment: Mapping[str, str] = os.environ) -> str | None:
    """What keeps Ray from starting a worker with an environment of its own, or ``None``; it would try for ever."""
    if shutil.which("bash", path=environment.get("PATH", "")):
        return None
    return "bash is not on PATH, and Ray starts workers through it; install bash, or add its folder to PATH"


def token_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where Ray keeps the token that its processes show each other."""
    return home(environment) / ".ray" / "auth_token"


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """This user's home, which a container may not have: then a folder that does not exist."""
    return Path(environment.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 - this one never raises


def make_token_private(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep others from reading this user's token, which Ray saves for everybody to read; whether they could.

    Where the rights cannot be changed they stay as they are: `doctor` says so.
    """
    file = token_file(environment)
    with suppress(OSError):
        if stat.S_IMODE(file.stat().st_mode) & _OTHERS:
            file.chmod(stat.S_IRUSR | stat.S_IWUSR)
            return True
    return False


def lacks_token(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Ray is told to show a token, and there is none."""
    is_given = environment.get(_TOKEN) or environment.get(_TOKEN_PATH)
    asks = environment.get(_MODE, "").lower() == "token"
    return asks and not is_given and not token_file(environment).exists()


@contextmanager
def own_token(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Within the context a Ray that is started asks for a token, which nobody else has unless the user gave it.

    It is not saved: whoever may read this user's files is no part of the sweep. All Rays of a process have the same.
    """
    is_given = environment.get(_TOKEN) or environment.get(_TOKEN_PATH)
    mode = environment.pop(_MODE, None)  # Ray itself sets it where it is absent
    if not is_given:
        environment[_TOKEN] = _token()
    try:
        yield
    finally:
        if not is_given:
            environment.pop(_TOKEN, None)
        environment.pop(_MODE, None)
        if mode is not None:
            environment[_MODE] = mode


@cache
def _token() -> str:
    return secrets.token_hex(32)


def is_utf8(encoding: str) -> bool:
    """Whether an encoding is UTF-8, by whatever name."""
    return codecs.lookup(encoding).name == "utf-8"


def begin_in_utf8() -> None:
    """Begin this process anew in Python's UTF-8 mode where the locale is another one.

    Only so do libraries read their own files: torch opens templates that are UTF-8 by the locale. What is shown keeps
    the terminal's encoding, with escapes for signs that it has not.
    """
    if sys.flags.ignore_environment or is_utf8(locale.getpreferredencoding(False)):
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted


def without_carriage_returns(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Cut the carriage return off values that a file with Windows line ends has set; names of the variables."""
    names = [name for name, value in environment.items() if value.endswith("\r")]
    for name in names:
        environment[name] = environment[name].rstrip("\r")
    return names
