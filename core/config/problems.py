"""What pydantic found wrong, in the user's words: one line for each problem."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from core.config.elsewhere import ELSEWHERE


def describe_problems(err: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem pydantic found: the field as the user wrote it, the rule, the value."""
    lines = []
    for problem in err.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if problem["type"] == "missing":
            lines.append(f"{place}: required, but absent; add it.")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key; {_suggestion(problem['loc'], model)}")
        elif not problem["loc"]:  # rules across sections name their fields themselves
            lines += [f"{line}." for line in message.split("\n")]
        elif problem["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = get_close_matches(str(problem["input"]), known, n=1, cutoff=0.5)
            rule = "unknown choice" if near else message
            hint = f"; did you mean {near[0]!r}?" if near else "."
            lines.append(f"{place}: {rule}, got {problem['input']!r}{hint}")
        elif isinstance(problem["input"], Mapping | BaseModel):
            lines.append(f"{place}: {message}.")
        else:
            lines.append(f"{place}: {message}, got {problem['input']!r}.")
    return lines


def _suggestion(place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What the unknown last part of ``place`` is called here, or the nearest valid key beside it."""
    if place[-1] in ELSEWHERE:
        return f"here it is {ELSEWHERE[str(place[-1])]}."
    known = _keys_at(model, place[:-1])
    near = get_close_matches(str(place[-1]), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known keys: {', '.join(known)}." if known else "remove it."


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in place:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields
            named = {f.alias or n: f.annotation for n, f in fields.items()}
            current = named.get(str(part))
        candidates = [current, *get_args(current)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        current = models[0] if models else current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()]
    return []
