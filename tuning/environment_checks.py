"""What `doctor` says of the surroundings: variables, folders and limits that other programs stumble over."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from core.errors import UserError
from core.model.machine import (
    INTERFACES,
    container_limits,
    installed_gpus,
    shown_in_words,
    unknown_interfaces,
    visible_gpus,
)
from core.store.place import CACHE_VARIABLE
from tuning.surroundings import (
    LEDGER_VARIABLE,
    OBJECT_STORE_BYTES,
    ON_A_NETWORK,
    ROOM,
    can_be_written,
    existing_part,
    folder_candidates,
    folder_problem,
    home,
    is_utf8,
    loopback_problem,
    network_file_system,
    shell_problem,
)

_MIB = 2**20
_ENOUGH_FILES = 1024
_ENOUGH_PROCESSES = 1000
_FULL = 0.95
"""Ray writes no objects to a disk that is fuller."""
_TORCH_TIMEOUT_S = 60.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: ``warn`` where something works less well or for others only, ``error`` where a sweep cannot run.
        found: As it is.
        fix: What to do; never empty unless ``ok``.
    """

    name: str
    status: Literal["ok", "warn", "error"]
    found: str
    fix: str = ""


def environment_checks(root: Path = Path("/")) -> list[Check]:
    """Look at the surroundings.

    Args:
        root: Where ``dev``, ``proc`` and ``sys`` lie.
    """
    return [
        gpus(root),
        container(root),
        shared_memory(root / "dev/shm"),
        ray_folder(),
        home_folder(),
        hub_folder(),
        ledger(),
        other_rays(),
        network(),
        proxies(),
        compile_locks(),
        shell(),
        compiler(),
        text_encoding(),
        line_ends(root / "proc/self/environ"),
        *limits(root),
    ]


def gpus(root: Path = Path("/")) -> Check:
    """GPUs that the environment shows, and whether torch can use them."""
    installed = installed_gpus(root)
    shown, words = visible_gpus(found=installed), shown_in_words(installed)
    found = f"{len(shown)} GPUs" + (f" ({words})" if words else "")
    if not shown:
        return Check("GPUs", "ok", found)
    with suppress(PackageNotFoundError):
        torch = version("torch")
        if torch.endswith("+cpu"):
            return Check(
                "GPUs",
                "error",
                f"{found}, but torch {torch} is built without CUDA",
                "install torch with CUDA (pip install torch, from the default index), or set "
                'CUDA_VISIBLE_DEVICES=""',
            )
    usable = _usable_by_torch()
    if usable != len(shown):
        return Check(
            "GPUs",
            "error",
            f"{found}, of which torch can use {usable}",
            "look at nvidia-smi: driver older than torch's CUDA, a container without --gpus, or parts of GPUs that "
            'CUDA_VISIBLE_DEVICES must name; CUDA_VISIBLE_DEVICES="" runs on the CPU',
        )
    return Check("GPUs", "ok", found)


def _usable_by_torch() -> int:
    """Asked in a process of its own: torch stays out of this one."""
    program = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    with suppress(subprocess.TimeoutExpired, ValueError):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TORCH_TIMEOUT_S,
        )
        return int(done.stdout.strip() or 0)
    return 0


def container(root: Path = Path("/")) -> Check:
    """What control groups leave of the machine."""
    left = container_limits(root)
    parts = []
    if left.cpus is not None:
        parts.append(f"{left.cpus:g} of {os.cpu_count()} cores")
    if left.memory_gib is not None:
        total = psutil.virtual_memory().total / 2**30
        parts.append(
            f"{left.memory_gib:.1f} GiB left of its memory limit, the machine has {total:.1f}"
        )
    return Check("container", "ok", "; ".join(parts) or "no limits of cores or memory")


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:  # noqa: S108 - where POSIX names live
    """Room for Ray's objects, and for what GPUs of a trial send each other."""
    fix = "give the container more: docker run --shm-size=1g"
    if not folder.is_dir():
        return Check("shared memory", "error", f"{folder} does not exist", "mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    found = f"{free // _MIB} MiB free at {folder}"
    if free < OBJECT_STORE_BYTES:
        found += f"; with less than {OBJECT_STORE_BYTES // _MIB} Ray keeps its objects on disk"
        return Check("shared memory", "warn", found, f"{fix}; trials of several GPUs need it")
    return Check("shared memory", "ok", found)


def ray_folder(environment: Mapping[str, str] = os.environ) -> Check:
    """Where Ray's sockets go, and why not where it was told."""
    candidates = folder_candidates(environment)
    preferred, problem = candidates[0], folder_problem(candidates[0])
    usable = next((f for f in candidates if folder_problem(f) is None), None)
    fix = f"set RAY_TMPDIR to a folder that can be written, of at most {ROOM - len('/ray')} bytes"
    if usable is None:
        return Check("ray folder", "error", f"{problem}; nor is there another", fix)
    usage = shutil.disk_usage(existing_part(usable))
    if usage.used > _FULL * usage.total:
        full = f"the disk of {usable} is {usage.used / usage.total:.0%} full"
        return Check("ray folder", "warn", full, f"free some space, or {fix}")
    if usable != preferred:
        return Check("ray folder", "warn", f"{problem}; {usable} is taken", fix)
    return Check("ray folder", "ok", str(usable))


def home_folder(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether there is a home that can be written: caches of most libraries lie there."""
    folder = home(environment)
    if can_be_written(folder):
        return Check("home", "ok", str(folder))
    found = f"{folder} cannot be written" if folder.is_absolute() else "this user has none"
    return Check(
        "home",
        "warn",
        found,
        f"set {CACHE_VARIABLE}, HF_HOME and MPLCONFIGDIR to folders that can be written, or HOME",
    )


def hub_folder(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether models and data of the hub can be downloaded."""
    caches = Path(environment.get("XDG_CACHE_HOME") or home(environment) / ".cache")
    hub = Path(environment.get("HF_HOME") or caches / "huggingface") / "hub"
    folder = Path(environment.get("HF_HUB_CACHE") or hub)
    if can_be_written(folder):
        return Check("hub cache", "ok", str(folder))
    found = f"{folder} cannot be written: from the hub only what is there already can be used"
    return Check("hub cache", "warn", found, "set HF_HOME to a folder that can be written")


def ledger(folder: Path = Path("runs"), environment: Mapping[str, str] = os.environ) -> Check:
    """Where ledgers of new runs go: a disk that keeps its promises, or a server that answers.

    Args:
        folder: Holds run folders.
        environment: May name a database.
    """
    url = environment.get(LEDGER_VARIABLE)
    if url is not None:
        from tuning.database import look_at_server

        try:
            shown = look_at_server(url)
        except UserError as err:
            what, _, fix = str(err).rpartition("; ")
            return Check("ledger", "error", what, fix)
        return Check("ledger", "ok", f"{shown} answers")
    kind = network_file_system(folder)
    if kind is None:
        return Check("ledger", "ok", "a file in the run folder, on a local disk")
    what, _, fix = ON_A_NETWORK.format(folder=folder, kind=kind).partition("; ")
    return Check("ledger", "warn", what, fix)


def other_rays(environment: Mapping[str, str] = os.environ) -> Check:
    """Other Rays on this machine, with whose work a sweep's trials share it."""
    pids = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet":
            pids.append(str(process.pid))
    address = environment.get("RAY_ADDRESS")
    named = f"RAY_ADDRESS={address} is not looked at without --address; " if address else ""
    if not pids:
        return Check("other Rays", "ok", f"{named}none runs here")
    return Check(
        "other Rays",
        "warn",
        f"{named}{len(pids)} run here (raylet of pid {', '.join(pids)}); a sweep starts its own beside them",
        "they share cores and memory: lower resources.max_concurrent, or run the sweep there with --address",
    )


def network(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether processes of this machine reach each other, through the interface that they are told."""
    problem = loopback_problem()
    if problem is not None:
        what, _, fix = problem.partition("; ")
        return Check("network", "error", what, fix)
    present, unknown = sorted(psutil.net_if_addrs()), unknown_interfaces(environment)
    if unknown:
        found = f"{INTERFACES} names {', '.join(unknown)}, which this machine has not"
        return Check("network", "error", found, f"unset it, or name one of {', '.join(present)}")
    return Check("network", "ok", f"loopback; interfaces {', '.join(present)}")


def proxies(environment: Mapping[str, str] = os.environ) -> Check:
    """Proxies, which the hub is asked through; Ray and the ranks talk past them."""
    given = {k: v for k, v in environment.items() if k.lower() in _PROXIES and v}
    if not given:
        return Check("proxies", "ok", "none")
    return Check("proxies", "ok", f"{', '.join(sorted(given))}: for hub and pip; not for Ray")


def compile_locks(environment: Mapping[str, str] = os.environ) -> Check:
    """Locks of torch's extensions that a killed process may have left, which others then wait at for ever."""
    caches = Path(environment.get("XDG_CACHE_HOME") or home(environment) / ".cache")
    folder = Path(environment.get("TORCH_EXTENSIONS_DIR") or caches / "torch_extensions")
    locks = []
    with suppress(OSError):
        locks = sorted(str(p) for pattern in ("*/lock", "*/*/lock") for p in folder.glob(pattern))
    if not locks:
        return Check("compile locks", "ok", "none")
    return Check(
        "compile locks",
        "warn",
        f"{', '.join(locks)}; unlearn-tune compiles nothing and waits for none, other programs do",
        f"if nothing is being compiled: rm {' '.join(locks)}",
    )


def shell(environment: Mapping[str, str] = os.environ) -> Check:
    """The shell that Ray starts its workers through."""
    problem = shell_problem(environment)
    if problem is None:
        return Check("shell", "ok", str(shutil.which("bash", path=environment.get("PATH", ""))))
    what, _, fix = problem.partition("; ")
    return Check("shell", "error", what, fix)


def compiler() -> Check:
    """A C++ compiler, which only other programs need."""
    found = shutil.which("c++") or shutil.which("g++") or "none"
    return Check("compiler", "ok", f"{found}; none is needed")


def text_encoding() -> Check:
    """How text is written to the terminal; files are read and written in UTF-8, whatever the locale."""
    used = sys.stdout.encoding
    if is_utf8(used):
        return Check("encoding", "ok", "UTF-8")
    found = f"the terminal's is {used}: other signs are shown as escapes"
    return Check("encoding", "warn", found, "export LC_ALL=C.UTF-8, or PYTHONUTF8=1")


def line_ends(started_with: Path = Path("/proc/self/environ")) -> Check:
    """Variables that a file with Windows line ends has set."""
    try:
        pairs = [line.partition(b"=") for line in started_with.read_bytes().split(b"\0")]
    except OSError:
        pairs = []
    names = [os.fsdecode(name) for name, _, value in pairs if value.endswith(b"\r")]
    if not names:
        return Check("line ends", "ok", "no variable ends in a carriage return")
    return Check(
        "line ends",
        "warn",
        f"{', '.join(names)}: the value ends in a carriage return, which is left out here, but not by other programs",
        "write the file that sets it with Linux line ends: dos2unix FILE",
    )


def limits(root: Path = Path("/")) -> Iterator[Check]:
    """Open files and processes that this user may have."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= _ENOUGH_FILES
    fix = f"ulimit -n {_ENOUGH_FILES}, or in a container docker run --ulimit nofile={_ENOUGH_FILES}"
    found = f"at most {files} (hard limit {most})"
    yield Check("open files", "ok", found) if enough else Check("open files", "warn", found, fix)
    allowed = [resource.getrlimit(resource.RLIMIT_NPROC)[0]]
    with suppress(OSError, ValueError):
        allowed.append(int((root / "sys/fs/cgroup/pids.max").read_text(encoding="ascii")))
    fewest = min((n for n in allowed if n != resource.RLIM_INFINITY), default=None)
    if fewest is None or fewest >= _ENOUGH_PROCESSES:
        yield Check("processes", "ok", "no limit" if fewest is None else f"at most {fewest}")
        return
    fix = f"ulimit -u {_ENOUGH_PROCESSES}, or docker run --pids-limit={_ENOUGH_PROCESSES}"
    yield Check("processes", "warn", f"at most {fewest}; a Ray has some hundred threads", fix)
