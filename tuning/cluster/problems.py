"""What the checks of all kinds of cluster files share: how a problem is worded, and what looks like a secret."""

import re
import reprlib
from collections.abc import Mapping
from difflib import get_close_matches

WORKER_PORTS = range(10002, 20000)
"""Ports that Ray's workers take; a server of the cluster's there may find its port taken."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})

_NAMED_SECRET = re.compile(
    r"\b([A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)[A-Z0-9_]*)"
    r"=[\"']?(?![$`\s])[^\s\"';&|]+",
    re.IGNORECASE,
)
_NOT_SECRET_ENDINGS = ("_PATH", "_FILE", "_DIR", "_MODE", "_ID")
_SECRET_SHAPES: Mapping[str, re.Pattern[str]] = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a GitHub token": re.compile(r"\b(?:gh[opsu]_|github_pat_)[A-Za-z0-9_]{16,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"://[^\s/:@]+:[^\s/@$]+@"),
}


def problem(key: str, rule: str, given: object, todo: str) -> str:
    """A problem in one line: place, rule, value, what to do."""
    shown = "nothing" if given is None else given if isinstance(given, str) else reprlib.repr(given)
    return f"{key}: {rule}, got {shown}, {todo}"


def secrets(text: str) -> list[str]:
    """What looks like a secret in a text, named and never repeated."""
    names = [match.group(1) for match in _NAMED_SECRET.finditer(text)]
    named = [f"{n}=***" for n in names if not n.upper().endswith(_NOT_SECRET_ENDINGS)]
    return named or [what for what, shape in _SECRET_SHAPES.items() if shape.search(text)]


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return bool(secrets(f"{name}=x"))


def nearest(name: str, known: list[str]) -> str:
    """What to do about an unknown name: the one that was meant, or to remove it."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "remove it"
