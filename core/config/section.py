"""What all configuration objects share."""

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
