"""What the checks of all kinds of cluster files share: how a problem is worded, and what looks like a secret."""

import reprlib
from difflib import get_close_matches

from core.text.redaction import secrets_in

WORKER_PORTS = range(10002, 20000)
"""Ports that Ray's workers take; a server of the cluster's there may find its port taken."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})


def problem(key: str, rule: str, given: object, todo: str) -> str:
    """A problem in one line: place, rule, value, what to do."""
    shown = "nothing" if given is None else given if isinstance(given, str) else reprlib.repr(given)
    return f"{key}: {rule}, got {shown}, {todo}"


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return bool(secrets_in(f"{name}=x"))


def nearest(name: str, known: list[str]) -> str:
    """What to do about an unknown name: the one that was meant, or to remove it."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "remove it"
