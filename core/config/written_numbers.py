"""Numbers that YAML reads as text, where a number is meant: ``1e-4``, ``2E3``, ``1.5e3``.

YAML 1.1 takes a number with an exponent for text unless it has a point and a sign. Whether text is meant is known by
the field only: a commit ``71e5672`` is none. So such text becomes a number where the field takes numbers and no text.
"""

import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def with_numbers(value: Any, annotation: Any) -> Any:
    """The same values, with text that is a number read as one where a number is meant.

    Args:
        value: Plain values, as read from a file.
        annotation: The type of what is built from them, such as a section.
    """
    kinds = _kinds(annotation)
    if isinstance(value, str):
        return _number(value) if _takes_numbers(kinds) and _NUMBER.fullmatch(value) else value
    if isinstance(value, list | tuple):
        of = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (tuple, list)]
        return [with_numbers(item, of[0]) for item in value] if of else value
    if not isinstance(value, Mapping):
        return value
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields.items()
            inner = {field.alias or name: field.annotation for name, field in fields}
            return {k: with_numbers(v, inner[k]) if k in inner else v for k, v in value.items()}
        if get_origin(kind) is dict:
            of_values = get_args(kind)[1]
            return {k: with_numbers(v, of_values) for k, v in value.items()}
    return value


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _takes_numbers(kinds: tuple[Any, ...]) -> bool:
    """Whether a number may stand there, and text that could be one may not; a section is never made of text."""
    takes = any(k in (int, float) or _is_section(k) for k in kinds)
    return takes and str not in kinds


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type, without what is annotated to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(kind for option in get_args(annotation) for kind in _kinds(option))
    if origin is Literal:
        return ()
    return (annotation,)
