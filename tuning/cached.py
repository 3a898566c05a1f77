"""Show what lies in the cache of shared work, and clear it."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import ConfigError, UserError
from core.store import upkeep
from core.store.place import cache_root
from core.store.upkeep import Entry
from tuning.files import read_yaml
from tuning.records import SPEC_FILE
from tuning.wording import NOTHING

_SECONDS: Mapping[str, int] = {"h": 3600, "d": 86400, "w": 7 * 86400}
_SHOWN_DIGITS = 12


def clear(
    *, kinds: Sequence[str], unused_for: str | None, everything: bool
) -> tuple[list[Entry], list[Entry]]:
    """Remove from the cache; with a kind and an age what both are true of.

    Args:
        kinds: Only of these kinds.
        unused_for: Only what was not used for so long, such as ``30d``.
        everything: All of it.

    Returns:
        What was removed, and what stayed because it is in use.

    Raises:
        UserError: If nothing says what is to go, or it is said in a wrong way.
    """
    if everything and (kinds or unused_for):
        raise UserError(
            "--all: it leaves nothing to --kind and --unused-for; give the one or the others"
        )
    if not (everything or kinds or unused_for):
        raise UserError(
            "cache clear: give --kind, --unused-for or --all; `cache list` shows what is there"
        )
    found = upkeep.entries()
    there = sorted({entry.kind for entry in found})
    for kind in kinds:
        if kind not in there:
            raise UserError(
                f"--kind: {kind!r} is not in the cache; there is: {', '.join(there) or 'nothing'}"
            )
    least_s = 0.0 if unused_for is None else _seconds(unused_for)
    return upkeep.remove(
        entry
        for entry in found
        if (not kinds or entry.kind in kinds) and upkeep.age_s(entry) >= least_s
    )


def cache_text(found: Sequence[Entry], runs: Path) -> str:
    """What lies in the cache, a line for each kind and what it was made from."""
    at_most = upkeep.limit()
    total = f"{cache_root()}: {_bytes(sum(e.size for e in found))}"
    lines = [
        total if at_most is None else f"{total} of {_bytes(at_most)} ({upkeep.LIMIT_VARIABLE})"
    ]
    named = _runs_by_model(runs)
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in found:
        of = (
            "unfinished, of a process that was killed"
            if entry.is_unfinished
            else _owner(entry, named)
        )
        groups.setdefault((entry.kind, of), []).append(entry)
    rows = [
        (
            kind,
            str(len(group)),
            _bytes(sum(e.size for e in group)),
            _ago(min(upkeep.age_s(e) for e in group)),
            of,
        )
        for (kind, of), group in sorted(groups.items())
    ]
    head = ("kind", "entries", "size", "last used", "of")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines if rows else lines[:1])


def cache_json(found: Sequence[Entry], runs: Path) -> dict[str, Any]:
    """Every entry of the cache, for scripts."""
    named = _runs_by_model(runs)
    return {
        "folder": str(cache_root()),
        "bytes": sum(e.size for e in found),
        "limit_bytes": upkeep.limit(),
        "entries": [
            _plain(entry) | {"model": entry.model(), "runs": named.get(entry.model() or "", [])}
            for entry in found
        ],
    }


def cleared_text(removed: Sequence[Entry], in_use: Sequence[Entry]) -> str:
    """What was removed, a line for each entry, and what was not."""
    lines = [f"removed {entry.kind}/{entry.path.name}, {_bytes(entry.size)}" for entry in removed]
    lines.append(f"{len(removed)} entries removed, {_bytes(sum(e.size for e in removed))}")
    if in_use:
        lines.append(
            f"{len(in_use)} entries stay, {_bytes(sum(e.size for e in in_use))}: a process that runs has used them"
        )
    return "\n".join(lines)


def cleared_json(removed: Sequence[Entry], in_use: Sequence[Entry]) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "removed": [_plain(entry) for entry in removed],
        "in_use": [_plain(entry) for entry in in_use],
        "removed_bytes": sum(e.size for e in removed),
    }


def _plain(entry: Entry) -> dict[str, Any]:
    used = datetime.fromtimestamp(entry.used, UTC)
    return {
        "kind": entry.kind,
        "name": entry.path.name,
        "bytes": entry.size,
        "used": used.isoformat(timespec="seconds"),
        "is_unfinished": entry.is_unfinished,
    }


def _owner(entry: Entry, named: Mapping[str, Sequence[str]]) -> str:
    """What an entry belongs to: runs here that name its model, else the model."""
    if entry.kind in (upkeep.MODELS, upkeep.PREPARED):
        return entry.path.name
    model = entry.model()
    if model is None:
        return NOTHING
    if model in named:
        return f"the model of {', '.join(named[model])}"
    kind, _, name = model.rpartition(":")
    return f"model {name[:_SHOWN_DIGITS]}" if kind else model


def _runs_by_model(runs: Path) -> dict[str, list[str]]:
    """Names of the runs below a folder, by what names their models."""
    found: dict[str, list[str]] = {}
    for path in sorted(runs.glob(f"*/{SPEC_FILE}")):
        with suppress(ConfigError):  # a damaged run is no reason to show nothing
            identity = read_yaml(path).get("identity") or {}
            for name in ("model", "model.retain_only"):
                if name in identity:
                    found.setdefault(str(identity[name]), []).append(path.parent.name)
    return found


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if found is None:
        raise UserError(
            f"--unused-for: a number of hours, days or weeks is expected, such as 30d, got {text!r}"
        )
    return float(int(found[1]) * _SECONDS[found[2]])


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _ago(seconds: float) -> str:
    for name, of in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= of:
            count = int(seconds // of)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "now"
