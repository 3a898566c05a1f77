"""Addresses of storages: which are taken, how one is shown, and where in it a run lies. Needs no pyarrow."""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from core.errors import UserError
from core.text.redaction import redacted

SCHEMES: Final = ("s3", "gs", "gcs", "file")
_LOOKS_LIKE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET_NAME = re.compile(
    r"secret|passw|token|credential|signature|(^|_)(access_)?key", re.IGNORECASE
)
_GIVE = (
    "give a bucket (s3://BUCKET/PREFIX, gs://BUCKET/PREFIX), or a folder that all nodes mount under one path "
    "(/mnt/shared)"
)


def is_url(text: str) -> bool:
    """Whether a text is an address rather than a path."""
    return _LOOKS_LIKE_URL.match(text) is not None


def checked(text: str, *, where: str = "--storage") -> str:
    """An address as it is kept: without credentials, a folder by its absolute path.

    Args:
        text: ``s3://``, ``gs://``, ``file://`` or a folder.
        where: What is named in an error.

    Raises:
        UserError: If it is none that is taken, or holds a credential.
    """
    if not text.strip():
        raise UserError(f"{where}: an address is expected, got nothing; {_GIVE}")
    if not is_url(text):
        return os.path.normpath(Path(text).expanduser().absolute())
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise UserError(
            f"{where}: {' or '.join(f'{s}://' for s in SCHEMES)} or a folder is expected, "
            f"got {redacted(text)}; {_GIVE}"
        )
    named = [name for name, _ in parse_qsl(parts.query) if _SECRET_NAME.search(name)]
    if named or (parts.username not in (None, "anonymous")) or parts.password is not None:
        what = f"{named[0]}=" if named else "credentials before the @"
        raise UserError(
            f"{where}: an address is shown in process lists and kept in files, and {redacted(text)} holds {what}; "
            "give credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), by ~/.aws, or by the "
            "machine's role"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UserError(f"{where}: file:///ABSOLUTE/FOLDER is expected, got {text}")
        return os.path.normpath(unquote(parts.path))
    if not parts.hostname:
        raise UserError(
            f"{where}: a bucket is expected after {parts.scheme}://, got {text}; {_GIVE}"
        )
    scheme = "gs" if parts.scheme == "gcs" else parts.scheme
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), parts.query, ""))


def below(address: str, *names: str) -> str:
    """The address of what lies below another one, which was checked."""
    if not is_url(address):
        return str(Path(address, *names))
    parts = urlsplit(address)
    path = "/".join((parts.path.rstrip("/"), *names))
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def split_run(address: str) -> tuple[str, str]:
    """Of the address of a run: the storage's, and the run's name.

    Raises:
        UserError: If it names no run.
    """
    whole = checked(address, where="RUN")
    if not is_url(whole):
        return str(Path(whole).parent), Path(whole).name
    parts = urlsplit(whole)
    folder, _, name = parts.path.rpartition("/")
    if not name:
        raise UserError(
            f"RUN: URL/NAME is expected, the storage and the name of a run in it, got {whole}"
        )
    return urlunsplit((parts.scheme, parts.netloc, folder, parts.query, "")), name


def folder_of(address: str) -> Path | None:
    """The folder of a storage that is one; ``None`` of a bucket."""
    return None if is_url(address) else Path(address)
