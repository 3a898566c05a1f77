"""Write configuration.md: every key of a sweep, trial and preparation file, from the classes that check them.

    python docs/reference/generate.py

A test compares the page with what this script makes.
"""

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core.config import PreparationConfig, TrialConfig
from tuning.config import Dimension, SweepSpec

PAGE = Path(__file__).with_name("configuration.md")

_TRIAL_SECTIONS = frozenset(TrialConfig.model_fields)
_WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def page() -> str:
    """The whole page."""
    parts = [
        "# Every key\n",
        "<!-- Made by docs/reference/generate.py from the classes that check the files; do not edit. -->\n",
        "A key that is not here is refused, with the nearest valid name. `unlearn-tune validate FILE` names every "
        "problem of a file at once. How the keys belong together is told in "
        "[search_spaces/README.md](../../search_spaces/README.md).\n",
        "## A trial\n",
        "What `train` takes, and what a sweep file may fix. Every field of `method`, `optimizer`, `adapter`, "
        "`fisher`, `batch` and `seed` can be searched under its dotted path.\n",
    ]
    parts += _sections(TrialConfig, "")
    parts += [
        "## A sweep\n",
        "The sections of a trial as fixed values (`selection` follows from what stands here), and:\n",
    ]
    own = {n: f for n, f in SweepSpec.model_fields.items() if n not in _TRIAL_SECTIONS}
    parts.append(_table((n, f) for n, f in own.items() if _section_of(f) is None))
    for name, field in own.items():
        inner = _section_of(field)
        if inner is not None and inner is not Dimension:
            parts += _section(inner, field.alias or name)
    parts += [
        "### `space.FIELD`\n",
        f"{_sentence(Dimension)}\n",
        _table(Dimension.model_fields.items()),
    ]
    for part in ("float_range", "int_range"):
        field = Dimension.model_fields[part]
        inner = _section_of(field)
        assert inner is not None
        parts += _section(inner, f"space.FIELD.{field.alias}")
    parts += ["## A preparation\n", "What `prepare` takes.\n", *_sections(PreparationConfig, "")]
    return "\n".join(parts).rstrip() + "\n"


def _sections(model: type[BaseModel], prefix: str) -> list[str]:
    plain = [(n, f) for n, f in model.model_fields.items() if _section_of(f) is None]
    parts = [_table(plain)] if plain and not prefix else []
    for name, field in model.model_fields.items():
        inner = _section_of(field)
        if inner is not None:
            parts += _section(inner, f"{prefix}{name}")
    return parts


def _section(model: type[BaseModel], path: str) -> list[str]:
    """A heading, the fields that are values, and the sections below."""
    plain = [(n, f) for n, f in model.model_fields.items() if _section_of(f) is None]
    parts = [f"### `{path}`\n", f"{_sentence(model)}\n"]
    if plain:
        parts.append(_table(plain))
    seen: dict[type[BaseModel], list[str]] = {}
    for name, field in model.model_fields.items():
        inner = _section_of(field)
        if inner is not None:
            seen.setdefault(inner, []).append(name)
    for inner, names in seen.items():  # forget, retain, ... are one kind of section
        name = names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
        parts += _section(inner, f"{path}.{name}")
    return parts


def _table(fields: Any) -> str:
    lines = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields:
        shown = field.alias or name
        lines.append(
            f"| `{shown}` | {_values(field)} | {_default(field)} | {_cell(field.description or '')} |"
        )
    return "\n".join(lines) + "\n"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, also where null or a word may stand for it."""
    return next((t for t in _flat(field.annotation) if _is_section(t)), None)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _flat(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _flat(inner)
    elif origin is Annotated:
        yield from _flat(get_args(annotation)[0])
    else:
        yield annotation


def _values(field: FieldInfo) -> str:
    return _cell(_bounded(_type(field.annotation), field.metadata))


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(_type(inside[0]), inside[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, inside)))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (tuple, list):
        return f"list of {_type(inside[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {_type(inside[0])} to {_type(inside[1])}"
    if _is_section(annotation):
        names = ", ".join(f"`{f.alias or n}`" for n, f in annotation.model_fields.items())
        return f"{{{names}}}"
    return _WORDS.get(annotation, "any value")


def _bounded(text: str, rules: Any) -> str:
    words = {Ge: "from {ge}", Gt: "above {gt}", Le: "at most {le}", Lt: "below {lt}"}
    found = [
        form.format(
            **{form.split("{")[1].rstrip("}"): getattr(rule, form.split("{")[1].rstrip("}"))}
        )
        for rule in rules
        for kind, form in words.items()
        if isinstance(rule, kind)
    ]
    found += ["at least one" for rule in rules if isinstance(rule, MinLen)]
    return f"{text}, {', '.join(found)}" if found else text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined:
        return ""
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        shown = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in shown.items()) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else repr(value) if value == "" else str(value)


def _sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
