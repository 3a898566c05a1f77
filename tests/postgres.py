"""A private PostgreSQL server in a folder of its own, reached through a Unix socket; nobody else's is touched."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "canary-5c1b"


def binaries() -> Path | None:
    """Where ``initdb`` and ``postgres`` are; Debian does not put them on PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@dataclass(frozen=True)
class Postgres:
    """A server.

    Attributes:
        folder: Holds its data and its socket.
        bin: Its programs.
    """

    folder: Path
    bin: Path

    def url(self, database: str, *, password: str | None = PASSWORD) -> str:
        login = "tuner" if password is None else f"tuner:{password}"
        return f"postgresql://{login}@/{database}?host={self.folder}"

    def start(self) -> None:
        """Returns when it answers."""
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        log = str(self.folder / "log")
        self._control("start", "-w", "-l", log, "-o", options)

    @property
    def is_running(self) -> bool:
        return (self.folder / "data" / "postmaster.pid").exists()

    def stop(self, *, mode: str = "fast") -> None:
        self._control("stop", "-w", "-m", mode)

    def _control(self, verb: str, *options: str) -> None:
        _as_other([str(self.bin / "pg_ctl"), verb, "-D", str(self.folder / "data"), *options])

    def database(self) -> str:
        """A new, empty database; its name."""
        name = f"d{secrets.token_hex(6)}"
        self.ask("postgres", f"CREATE DATABASE {name}")
        return name

    def ask(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """What a statement says, asked through a connection of its own."""
        import psycopg

        url = self.url(database)
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def serving() -> Iterator[Postgres]:
    """A server of this test session's own."""
    found = binaries()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    _give_to_other(folder)
    secret = folder / "secret"
    secret.write_text(PASSWORD, encoding="utf-8")
    _give_to_other(secret)
    made = ["--username=tuner", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"]
    _as_other([str(found / "initdb"), "-D", str(folder / "data"), *made, "--locale=C.UTF-8"])
    server = Postgres(folder, found)
    server.start()
    try:
        yield server
    finally:
        if server.is_running:
            server.stop(mode="immediate")
        shutil.rmtree(folder)


def _other() -> pwd.struct_passwd | None:
    """Whom the server runs as where this is root, which it refuses."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else None


def _give_to_other(path: Path) -> None:
    other = _other()
    if other is not None:
        os.chown(path, other.pw_uid, other.pw_gid)


def _as_other(command: list[str]) -> None:
    other = _other()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=None if other is None else other.pw_uid,
        group=None if other is None else other.pw_gid,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
