"""What was read of the data and what is left out, in words, wherever a person is shown it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from core.data.counts import Counts, total

_FIELDS = tuple(f.name for f in fields(Counts))


def read_counts(noted: Any) -> dict[str, Counts]:
    """Counts by part as ``spec.yaml`` holds them; empty for a run that has none."""
    if not isinstance(noted, Mapping):
        return {}
    return {
        str(part): Counts(**{n: found[n] for n in _FIELDS if isinstance(found.get(n), int)})
        for part, found in noted.items()
        if isinstance(found, Mapping)
    }


def by_role(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """Counts of the roles, from those of their parts such as ``retain_probe``."""
    roles = dict.fromkeys(_role(part) for part in counts)
    return {role: total(c for part, c in counts.items() if _role(part) == role) for role in roles}


def count_words(counts: Counts) -> str:
    """One role in words, such as ``28 rows read, 28 kept with 1203 tokens; nothing is left out``."""
    return (
        f"{_number(counts.read_rows, 'row')} read, {counts.rows} kept with {_number(counts.tokens, 'token')}; "
        f"{_left_out(counts)}"
    )


def count_lines(counts: Mapping[str, Counts]) -> list[str]:
    """A line for each role: what was read, how many rows its parts have, and what is left out."""
    lines = []
    for role, found in by_role(counts).items():
        sizes = ", ".join(
            f"{part.removeprefix(role + '_')} {c.rows}"
            for part, c in counts.items()
            if part.startswith(f"{role}_")
        )
        lines.append(f"{role}: {count_words(found)}" + (f" ({sizes})" if sizes else ""))
    return lines


def data_warnings(counts: Mapping[str, Counts]) -> list[str]:
    """What a person should know before believing that all of the forget set was forgotten."""
    found = []
    roles = by_role(counts)
    forget, approximate = roles.get("forget", Counts()), roles.get("approximate", Counts())
    if forget.cut_rows:
        found.append(
            f"data.forget: {forget.cut_rows} of {_number(forget.read_rows, 'row')} are longer than max_tokens and "
            f"are cut: {forget.cut_tokens} of {_number(forget.read_tokens, 'token')} are not forgotten; raise "
            "max_tokens, or for documents use overlong: chunk"
        )
    if forget.blank_rows + forget.short_rows:
        found.append(
            f"data.forget: {_unusable(forget)} of {_number(forget.read_rows, 'row')} are left out: nothing of them "
            "would be predicted, so they are not forgotten; look at them if they should be"
        )
    n_usable = forget.read_rows - forget.blank_rows - forget.short_rows
    is_chunked = forget.rows + forget.repeated_rows > n_usable
    if is_chunked and approximate.cut_rows:
        found.append(
            f"data.approximate: {approximate.cut_rows} of {_number(approximate.read_rows, 'row')} are cut, while "
            "the forget set's documents are chunked: the target of forgetting is that of beginnings only; use "
            "overlong: chunk there, too"
        )
    return found


def _role(part: str) -> str:
    return part.partition("_")[0]


def _left_out(counts: Counts) -> str:
    found = [
        words
        for n, words in (
            (
                counts.cut_rows,
                f"{_number(counts.cut_tokens, 'token')} of {_number(counts.cut_rows, 'row')} cut",
            ),
            (
                counts.dropped_chunks,
                f"{_number(counts.dropped_chunks, 'last chunk')} too short "
                f"({_number(counts.dropped_tokens, 'token')})",
            ),
            (
                counts.repeated_rows,
                f"{_number(counts.repeated_rows, 'equal row')} ({_number(counts.repeated_tokens, 'token')})",
            ),
            (counts.blank_rows + counts.short_rows, _unusable(counts)),
        )
        if n
    ]
    return f"left out: {', '.join(found)}" if found else "nothing is left out"


def _unusable(counts: Counts) -> str:
    blank, short = counts.blank_rows, counts.short_rows
    found = [(blank, _number(blank, "blank row")), (short, f"{_number(short, 'row')} too short")]
    return " and ".join(words for n, words in found if n)


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
