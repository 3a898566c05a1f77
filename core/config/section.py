"""What all configuration objects share."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes of a name between two slashes, and of a path: no file system of Linux takes more."""


def _is_no_longer_than_a_path(value: str) -> str:
    """Refused here, because every question to the file system about it would be an error of the system's."""
    lengths = [len(name.encode("utf-8", "surrogatepass")) for name in value.split("/")]
    if max(lengths) > _LONGEST_NAME or sum(lengths) + len(lengths) > _LONGEST_PATH:
        raise ValueError(f"is longer than a path can be, {_LONGEST_NAME} bytes between two slashes")
    return value


Place = Annotated[str, Field(min_length=1), AfterValidator(_is_no_longer_than_a_path)]
"""A name of something, or a path."""

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all configuration objects: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def auto_or(rule: str, fits: Callable[[float], bool]) -> BeforeValidator:
    """A check of a field that is a number or ``auto``: one problem, at the field itself."""

    def check(value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "auto" and not (is_number and fits(value)):  # type: ignore[arg-type]
            raise ValueError(f"must be auto or {rule}")
        return value

    return BeforeValidator(check)
