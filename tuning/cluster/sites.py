"""Which cluster a verb speaks with: by its file for Ray's launcher, or by a dashboard that can be reached already."""

import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError, UserError
from tuning.cluster.commands import Site
from tuning.cluster.kinds import is_cluster_file, is_manifest
from tuning.files import read_yaml

DEFAULT_FILE = Path("cluster.yaml")
_PROGRAM = "unlearn-tune"
_TOKEN_PATH = re.compile(r"\bRAY_AUTH_TOKEN_PATH=[\"']?([^\s\"';&|]+)")
_ADDRESS = re.compile(r"^http://[^\s/:]+:\d+$")
_TOKEN_BYTES = 32


def read_config(file: Path) -> dict[str, Any]:
    """A file for Ray's launcher.

    Raises:
        ConfigError: If it is none.
    """
    config = read_yaml(file)
    if not is_cluster_file(config) or is_manifest(config):
        raise ConfigError(
            str(file),
            [
                "must be a file for Ray's launcher, as cluster.yaml; a cluster of Slurm or Kubernetes is started by "
                "their own commands, and reached with --address"
            ],
        )
    return config


def site_of(
    file: Path | None,
    *,
    address: str | None,
    work_folder: str | None = None,
    program: str | None = None,
    storage: str | None = None,
    needs_folder: bool = True,
) -> tuple[Site, dict[str, Any]]:
    """A cluster, and what its file holds.

    Args:
        file: For Ray's launcher; ``cluster.yaml`` of the current folder if there is neither this nor an address.
        address: Of a dashboard that this machine reaches, such as ``http://127.0.0.1:8265``.
        work_folder: Where runs lie on the head, instead of what the file says.
        program: The command line there, instead.
        storage: Where trials are committed, instead.
        needs_folder: Whether the work folder is needed.

    Raises:
        UserError: If there is neither a file nor an address, the address is none, or the work folder not absolute.
    """
    if address is not None and not _ADDRESS.match(address):
        raise UserError(
            f"--address: must be the address of a dashboard, such as http://127.0.0.1:8265, got {address!r}"
        )
    if file is None and address is None:
        if not DEFAULT_FILE.is_file():
            raise UserError(
                f"FILE: no {DEFAULT_FILE} is here; name the cluster's file, or give the --address of its dashboard"
            )
        file = DEFAULT_FILE
    config = {} if file is None else read_config(file)
    said = config.get("metadata")
    data: Mapping[str, Any] = said if isinstance(said, dict) else {}
    folder = work_folder or data.get("work_folder")
    if needs_folder and not str(folder or "").startswith("/"):
        raise UserError(
            f"--work-folder: must be an absolute path on the head, got {folder or 'nothing'}; give it, or write "
            "metadata.work_folder into the cluster's file"
        )
    site = Site(
        file=None if address is not None else file,
        address=address or f"http://127.0.0.1:{free_port()}",
        work_folder=str(folder or ""),
        program=program or str(data.get("program", _PROGRAM)),
        storage=storage or data.get("storage"),
        token_file=local_token(config),
        ray=str(Path(sys.executable).with_name("ray")),
    )
    return site, config


def local_token(config: Mapping[str, Any]) -> Path | None:
    """The token of this machine that ``file_mounts`` gives the nodes; ``None`` if the file mounts none."""
    commands = config.get("head_start_ray_commands")
    found = _TOKEN_PATH.search("\n".join(map(str, commands)) if isinstance(commands, list) else "")
    mounts = config.get("file_mounts")
    if found is None or not isinstance(mounts, dict):
        return None
    there = Path(found.group(1))
    here = mounts.get(str(there.parent))
    return None if here is None else Path(os.path.expanduser(here)) / there.name  # noqa: PTH111 - as Ray does


def make_token(file: Path) -> bool:
    """Make a token that only this user can read, where there is none; whether one was made."""
    if file.is_file():
        file.chmod(0o600)
        return False
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_hex(_TOKEN_BYTES))
    return True


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
