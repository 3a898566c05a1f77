"""Is this machine ready? One line for each thing, with a fix."""

import os
import stat
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.errors import UserError
from core.model.machine import free_memory_gib
from core.model.packaged import PACKAGED_MODELS, cached_folder
from core.store.place import CACHE_VARIABLE, cache_root
from tuning.environment_checks import Check, environment_checks
from tuning.resources import Cluster, free_disk_gib
from tuning.surroundings import can_be_written, make_token_private, token_file

_FAMILY = {
    "torch": "2.11",
    "ray": "2.60",
    "optuna": "5.0",
    "deepspeed": "0.19",
    "peft": "0.21",
    "transformers": "5.23",
}
"""Lowest version of each package that this release works with; below torch 2.11 loading is not safe."""

_NEEDED_DISK_GIB = 5.0
_NEEDED_MEMORY_GIB = 6.0


def examine() -> list[Check]:
    """Look at everything."""
    return [
        _python(),
        *(_package(name, lowest) for name, lowest in _FAMILY.items()),
        _devices(),
        _memory(),
        *environment_checks(),
        _runs(Path("runs")),
        _disk("run folder", Path("runs")),
        *_cache(),
        _ray_token(),
    ]


def _cache() -> list[Check]:
    try:
        root = cache_root()
    except UserError as err:
        return [Check("cache folder", "error", "none", str(err))]
    return [
        _disk("cache", root),
        _writable(root),
        *(_packaged_model(name) for name in PACKAGED_MODELS),
    ]


def _python() -> Check:
    return Check("python", "ok", ".".join(map(str, sys.version_info[:3])))


def _package(name: str, lowest: str) -> Check:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, "error", "not installed", "run `make setup`")
    parts = [int(p) for p in found.split("+")[0].split(".")[:2]]
    if parts < [int(p) for p in lowest.split(".")]:
        return Check(name, "error", found, f"at least {lowest} is needed: run `make setup`")
    return Check(name, "ok", found)


def _devices() -> Check:
    here = Cluster.this_machine()
    found = f"{here.cpus:g} CPU cores, {here.gpus:g} GPUs"
    if here.gpu_memory_gib is not None:
        found += f" of {here.gpu_memory_gib:.0f} GiB"
    return Check("devices", "ok", found)


def _memory() -> Check:
    gib = free_memory_gib()
    found = f"{gib:.1f} GiB free"
    if gib < _NEEDED_MEMORY_GIB:
        return Check("memory", "warn", found, f"the demo needs about {_NEEDED_MEMORY_GIB:g} GiB")
    return Check("memory", "ok", found)


def _disk(name: str, path: Path) -> Check:
    gib = free_disk_gib(path)
    found = f"{gib:.1f} GiB free at {path}"
    if gib < _NEEDED_DISK_GIB:
        return Check(
            f"disk ({name})", "warn", found, f"free {_NEEDED_DISK_GIB:g} GiB, or use another disk"
        )
    return Check(f"disk ({name})", "ok", found)


def _runs(path: Path) -> Check:
    if can_be_written(path):
        return Check("run folder", "ok", str(path.absolute()))
    found = f"{path.absolute()} cannot be written"
    return Check("run folder", "error", found, "start from a folder that can be written")


def _writable(path: Path) -> Check:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".doctor-{os.getpid()}"
        probe.write_text("x", encoding="utf-8")
        probe.rename(probe.with_suffix(".moved")).unlink()
    except OSError as err:
        return Check(
            "cache folder",
            "error",
            str(err),
            f"set {CACHE_VARIABLE} to a folder that can be written",
        )
    return Check("cache folder", "ok", str(path))


def _packaged_model(name: str) -> Check:
    model = PACKAGED_MODELS[name]
    folder = cached_folder(name)
    if folder is not None:
        return Check(f"package:{name}", "ok", str(folder))
    return Check(
        f"package:{name}",
        "warn",
        "not prepared yet",
        f"the first sweep downloads {model.requirement} (93 MB)",
    )


def _ray_token() -> Check:
    token, name = token_file(), "ray token"
    if not token.exists():
        return Check(
            name, "ok", "none at home, as clusters need one; Rays of sweeps have their own"
        )
    if not make_token_private():
        if stat.S_IMODE(token.stat().st_mode) & 0o077:
            fix = f"as its owner: chmod 600 {token}"
            return Check(name, "error", f"{token} can be read by others", fix)
        return Check(name, "ok", f"{token}, private")
    return Check(
        name,
        "warn",
        f"{token} could be read by others, as Ray writes it; it is private now (chmod 600)",
        "if others use this machine: make a new one for your clusters (ray get-auth-token --generate)",
    )
