"""The verb ``init``: a sweep file for one's own model and data, from a shipped one."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Final

import yaml

from core.config import FieldNames, SourceConfig
from core.data.sources import is_at_hand, read_rows
from core.errors import UserError
from core.store.durable import commit_text
from core.store.texts import read_text
from tuning.columns import fields_by_role
from tuning.config import RUN_NAME
from tuning.files import leads_from, load_sweep
from tuning.validate import refuse_missing

NOT_OF_ONE_METHOD: Final = frozenset({"demo", "authors", "tofu", "tofu_small"})
"""Shipped sweep files whose data are the point of them."""

DEFAULT_GENERAL: Final = "embedded:general"
_LARGEST_PART: Final = 48
_TOKENS: Final = 256
_HELD_OUT: Final = (4, 6, 8)
"""One row in so many is held out for probes, and as many for the report: what is left has to do for a step."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a sweep file is made from.

    Attributes:
        model: Source of the target model.
        forget: Source of what must go.
        retain: Source of text of its domain that must stay.
        approximate: Source of text like the forget set's that the model never saw; ``None`` with ``retain_only``.
        retain_only: Source of a model that never saw the forget set.
        general: Source of ordinary text.
        method: Name of a shipped sweep file.
        fields: Columns of the files that hold their text, where they have other names than the known ones; a file
            gets the first of them that it has.
    """

    model: str
    forget: str
    retain: str
    approximate: str | None
    retain_only: str | None
    general: str
    method: str
    fields: Sequence[FieldNames] = ()

    @property
    def sources(self) -> dict[str, str]:
        """Sources by role, of those that are given."""
        found = {
            "forget": self.forget,
            "retain": self.retain,
            "approximate": self.approximate,
            "general": self.general,
        }
        return {role: source for role, source in found.items() if source is not None}


def methods() -> list[str]:
    """Names of the shipped sweep files that ``init`` may begin with."""
    folder = resources.files("search_spaces")
    names = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]
    return sorted(name for name in names if name not in NOT_OF_ONE_METHOD)


def write_sweep(answers: Answers, out: Path) -> None:
    """Write a sweep file that validates, with the comments and ranges of the method's shipped one.

    Args:
        answers: Model, data and method.
        out: File to make.

    Raises:
        UserError: If the file exists, a name or a source is wrong, or rows are too few; nothing is written then.
    """
    if out.exists():
        raise UserError(f"OUT: {out} exists already; give a new file")
    if answers.approximate is None and answers.retain_only is None:
        raise UserError(
            "--approximate: needed to say how far to forget: text of the forget set's kind that the model never saw; "
            "or give --retain-only, a model that never saw the forget set"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", out.name.partition(".")[0]).strip("-.") or "sweep"
    assert re.fullmatch(RUN_NAME, name[:64])
    template = _template(answers.method)
    fields = fields_by_role(answers.sources, answers.fields, where=str(out))
    sources = {
        role: SourceConfig(source=source, fields=fields.get(role, FieldNames()), max_tokens=_TOKENS)
        for role, source in answers.sources.items()
    }
    for held_out in _HELD_OUT:
        data = _data(sources, held_out, out.parent)
        commit_text(out, _filled(template, answers, out.parent, name=name[:64], data=data))
        try:
            refuse_missing(load_sweep(out), where=str(out))
            return
        except UserError:
            out.unlink()
            if held_out == _HELD_OUT[-1]:
                raise


def _template(method: str) -> str:
    known = methods()
    if method not in known:
        near = get_close_matches(method, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"--method: no sweep file {method!r} is shipped; {hint}known: {', '.join(known)}"
        )
    with resources.as_file(resources.files("search_spaces") / f"{method}.yaml") as path:
        return read_text(path)


def _seen_from(folder: Path, source: str) -> str:
    """A source as a file of that folder names it: paths of the command line are relative to the current one."""
    is_relative = not Path(source).is_absolute() and leads_from(Path(), source)
    return os.path.relpath(source, folder) if is_relative else source


def _filled(template: str, answers: Answers, folder: Path, *, name: str, data: str) -> str:
    """The shipped file with another name, model and data; where damage is counted is left to the baseline."""
    model = {"source": _seen_from(folder, answers.model)}
    if answers.retain_only is not None:
        model["retain_only"] = _seen_from(folder, answers.retain_only)
    text = re.sub(r"(?m)^name: .*$", f"name: {name}", template, count=1)
    text = re.sub(r"(?m)^model: .*(\n[ #].*)*", lambda _: f"model: {_flow(model)}", text, count=1)
    text = re.sub(r"(?m)^data:\n([ #].*\n)+", lambda _: data, text, count=1)
    text = re.sub(r"(?m)^# The retain loss reads general prose.*\n", "", text)
    text = text.replace("retain_source: general", "retain_source: in_distribution")
    return re.sub(r"\bretain_drop\b", "auto", text)


def _data(sources: Mapping[str, SourceConfig], held_out: int, folder: Path) -> str:
    why = {
        "forget": "must go",
        "retain": "must stay; the retain loss reads the part that is not held out",
        "approximate": "like the forget set, but never seen by the model: its level is the target",
        "general": "ordinary text of other domains; must stay",
    }
    lines = ["data:"]
    for role, source in sources.items():
        given = source.model_dump(exclude_defaults=True, exclude_none=True)
        values = {key: given[key] for key in ("source", "fields") if key in given}
        values["source"] = _seen_from(folder, source.source)
        lines.append(
            f"  {role}: {_flow(values | {'max_tokens': source.max_tokens})}  # {why[role]}"
        )
    parts = {role: _part(sources[role], role, held_out) for role in ("retain", "general")}
    for key, said in (
        ("probe_rows", "measured again and again during a trial; a drop is surer on more"),
        ("report_rows", "seen by neither losses nor probes; finalists are reported on them"),
    ):
        lines.append(f"  {key}: {_flow(parts)}  # {said}")
    return "\n".join(lines) + "\n"


def _part(config: SourceConfig, role: str, held_out: int) -> int:
    """Rows to hold out: one in so many of those that are there, at most 48."""
    if not is_at_hand(config):
        return _LARGEST_PART
    n_distinct = len({(row.prompt, row.answer) for row in read_rows(config, role=role)})
    return max(1, min(_LARGEST_PART, n_distinct // held_out))


def _flow(values: Mapping[str, object] | Sequence[object]) -> str:
    """YAML in a line."""
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000).strip()
