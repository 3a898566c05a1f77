"""Secrets taken out of texts: at the door where words of others enter records, logs and the screen.

An error of a library may quote a URL with its password, a header, or a value of the environment, and a record outlives
the machine that it was made on. A secret is known by its name, by its shape, or by being the value of a variable of
this process with a name of that kind.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

HIDDEN: Final = "***"
"""What stands for a secret."""

LOG_LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

SHAPES: Final[Mapping[str, re.Pattern[str]]] = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a GitHub token": re.compile(r"\b(?:gh[opsu]_|github_pat_)[A-Za-z0-9_]{16,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    "a private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?", re.DOTALL
    ),
}
"""Secrets whose shape says what they are."""
IN_URL: Final = re.compile(r"(?<=://)[^\s/?#\"'<>]+@")
"""User and password of a URL."""
ASSIGNED: Final = re.compile(
    r"\b([A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)[A-Z0-9_]*)"
    r"=[\"']?(?![$`\s])[^\s\"';&|]+",
    re.IGNORECASE,
)
"""A name of a secret and its value, as a command has them."""
NOT_SECRET_ENDINGS: Final = ("_PATH", "_FILE", "_DIR", "_MODE", "_ID")
"""How names end that only say where a secret is, or whose."""

_NAMED = re.compile(
    r"""(?ix)
    ( [\w-]* (?: passw(?:or)?d | passphrase | secret | api_?-?key | access_?-?key | private_?-?key
               | auth_?-?token | access_?-?token | (?<![a-z])token | [_-]token ) [\w-]*
      ["']? \s* [=:] \s* )
    ( "[^"\n]*" | '[^'\n]*' | [^\s,;&|"'<>)\]}]+ )
    """
)
"""A name of a secret and its value, as code, JSON, a query and a command have them."""
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_SECRET_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:\w*TOKEN|\w*SECRET\w*|\w*PASSW\w*|\w*PASSPHRASE|\w*KEY|CREDENTIAL)(?:_|$)"
)
_SHORTEST = 6
"""Signs of a value that is looked for as it stands; a shorter one would be found in any text."""
_STRONG = re.compile(r"(?i)passw|passphrase|secret")


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with ``***`` for each secret in it.

    Args:
        text: What somebody else wrote.
        environment: Variables whose values are looked for.
    """
    for value in _values(environment):
        text = text.replace(value, HIDDEN)
    text = IN_URL.sub(f"{HIDDEN}@", text)
    for shape in SHAPES.values():
        text = shape.sub(HIDDEN, text)
    text = _HEADER.sub(rf"\1 {HIDDEN}", text)
    return _NAMED.sub(_without_value, text)


def secrets_in(text: str) -> list[str]:
    """What secrets a command holds, by name or by kind, never repeated."""
    names = [found[1] for found in ASSIGNED.finditer(text)]
    named = [f"{name}={HIDDEN}" for name in names if not name.upper().endswith(NOT_SECRET_ENDINGS)]
    if named:
        return named
    kinds = {**SHAPES, "a password in a URL": re.compile(r"://[^\s/:@]+:[^\s/@$]+@")}
    return [kind for kind, shape in kinds.items() if shape.search(text)]


class Redacting(logging.Formatter):
    """Lines of a log, with their tracebacks, without secrets."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        """Take who writes the lines; time, level, logger and message if absent."""
        super().__init__()
        self._inner = inner or logging.Formatter(LOG_LINE)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return redacted(self._inner.format(record))


def _without_value(found: re.Match[str]) -> str:
    """The name with ``***``, where the value can be a secret: not a number, a word of a vocabulary or a path."""
    name, written = found[1], found[2]
    quote = written[0] if written[0] in "\"'" else ""
    value = written.strip(quote) if quote else written
    bare = name.rstrip().rstrip("=:").strip().strip("\"'").upper()
    is_pointer = bare.endswith((*NOT_SECRET_ENDINGS, "TOKENS"))
    is_plain = value == HIDDEN or not (
        _STRONG.search(name)
        or (len(value) >= 8 and re.search(r"\d", value) and not value.isdigit())
    )
    return found[0] if is_pointer or is_plain or not value else f"{name}{quote}{HIDDEN}{quote}"


def _values(environment: Mapping[str, str]) -> Iterator[str]:
    """Values of the environment that are secrets, the longest first."""
    found = set[str]()
    for name, value in environment.items():
        if "://" in value:
            login = IN_URL.search(value)
            _, _, password = login[0][:-1].partition(":") if login else ("", "", "")
            found |= {password, unquote(password)}
        elif _SECRET_VARIABLE.search(name) and not name.upper().endswith(NOT_SECRET_ENDINGS):
            found.add(value)
    yield from sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)
