"""Mutations of a file as text and as bytes: lines, signs of YAML, encodings, halves."""

from __future__ import annotations

import codecs
import random
import re
from collections.abc import Callable, Mapping

ByteMutation = Callable[[bytes, random.Random], bytes]
"""Another content, by a generator of random numbers."""

ODD_SCALARS = (
    "!!python/object/apply:os.system ['touch /tmp/hacked']", "!!python/name:os.system ''", "!!python/tuple [1, 2]",
    "!!python/object:core.errors.UserError {}", "!!binary aGVsbG8=", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!timestamp nonsense", "2026-02-30", "!!int x", "!!float x", "!!bool maybe", "!!null x",
    "!unknown x", "!!map [1]", "!!seq {a: 1}", "&a [*a]", "&a {b: *a}", "*nowhere", "<<: 1", "{<<: [1, 2]}",
    "[&a [x, x], &b [*a, *a], &c [*b, *b], &d [*c, *c]]", "1__0", "0o17", "017", "1:2:3:4", ".5", "5.", "+.inf", ".NaN",
    "'unclosed", '"unclosed', "[unclosed", "{unclosed", "|", ">-", "? [a, b]", "- a", "a: b: c", "@x", "%x", "`x`",
    '"\\x41\\u0000\\ud83d"', '"\\q"', "9" * 5_000, "1e" + "9" * 500, "[" * 2_000, "{a: " * 500, "x" * 200_000,
)  # fmt: skip


def _line(change: Callable[[str, random.Random], str]) -> ByteMutation:
    """One line that is no comment becomes another."""

    def mutation(content: bytes, rng: random.Random) -> bytes:
        lines = content.decode("utf-8", "surrogateescape").split("\n")
        said = [
            i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")
        ]
        if said:
            at = rng.choice(said)
            lines[at] = change(lines[at], rng)
        return "\n".join(lines).encode("utf-8", "surrogateescape")

    return mutation


def _lines_moved(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def _lines_again(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    begin = rng.randrange(len(lines))
    chosen = lines[begin : begin + rng.randint(1, 5)]
    at = rng.randrange(len(lines) + 1)
    return b"\n".join([*lines[:at], *chosen * rng.choice((1, 1, 3, 500)), *lines[at:]])


def _other_scalar(line: str, rng: random.Random) -> str:
    head, colon, _ = line.partition(":")
    return (
        f"{head}{colon} {rng.choice(ODD_SCALARS)}" if colon else f"{line} {rng.choice(ODD_SCALARS)}"
    )


def _other_word(line: str, rng: random.Random) -> str:
    words = list(re.finditer(r"[\w.+-]+", line))
    if not words:
        return line
    word = rng.choice(words)
    return line[: word.start()] + rng.choice(ODD_SCALARS) + line[word.end() :]


def _indented(line: str, rng: random.Random) -> str:
    return rng.choice(("", " ", "   ", "\t", "  \t", "\u00a0", "\u3000")) + line.lstrip(
        rng.choice((" ", ""))
    )


def _sign_lost(line: str, rng: random.Random) -> str:
    signs = [i for i, sign in enumerate(line) if sign in ":-,[]{}\"'#"]
    if not signs:
        return line
    at = rng.choice(signs)
    return line[:at] + rng.choice(("", "", ":", "{", "[", '"', "'", "#", "&", "*")) + line[at + 1 :]


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 4, 64)) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _inserted(content: bytes, rng: random.Random) -> bytes:
    odd = (b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1b[2J", b"\r", b"\x85", "\u2028".encode(), b"\xef\xbb\xbf",
           b"---\n", b"...\n", b"%YAML 9.9\n", b"\t", bytes(range(256)), rng.randbytes(200))  # fmt: skip
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(odd) + content[at:]


def _encoded(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace") + rng.choice(("", "# é\n"))
    bom = rng.choice(("", "\ufeff"))
    encoding = rng.choice(
        ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-7", "cp1252", "cp500", "utf-8")
    )
    return (bom + text).encode(encoding, "replace")


def _other_ends(content: bytes, rng: random.Random) -> bytes:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b" \n", b"\x0b", b"\0\n")))


def _another_file(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (b"", b"\n", b"---\n---\n", b"null\n", b"3\n", b"[]\n", b"{}\n", b"text\n", b"\x1f\x8b\x08\x00", b"PK\x03\x04",
         codecs.BOM_UTF16_LE, b"SQLite format 3\0", b"#!/bin/sh\nexit 1\n", b"a" * 2_000_000, b"- " * 400_000,
         b"[" * 100_000, b"a: &a [x, x]\n" + b"".join(b"k%d: &k%d [*%s, *%s]\n" % (
             i, i, b"a" if i == 0 else b"k%d" % (i - 1), b"a" if i == 0 else b"k%d" % (i - 1)) for i in range(30)),
         b"? {a: 1}\n: x\n", content + content, content * 300, content[::-1])
    )  # fmt: skip


BYTE_MUTATIONS: Mapping[str, ByteMutation] = {
    "scalar": _line(_other_scalar),
    "word": _line(_other_word),
    "indentation": _line(_indented),
    "sign": _line(_sign_lost),
    "lines moved": _lines_moved,
    "lines again": _lines_again,
    "truncated": _truncated,
    "bits flipped": _flipped,
    "bytes put in": _inserted,
    "encoding": _encoded,
    "line ends": _other_ends,
    "another file": _another_file,
}
"""By name."""
