"""Errors that a user can act on. Each message names the place, the rule, the value and what to do."""

from collections.abc import Sequence


def first_line(err: BaseException) -> str:
    """What an error says in its first line; its kind if it says nothing."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]


class UserError(Exception):
    """A mistake in the input or the surroundings; the command line prints it without a traceback, exit status 2."""


class ConfigError(UserError):
    """One or more problems of one file or object, all named at once.

    Args:
        where: The file or object, as the user knows it.
        problems: One line for each problem: ``field: rule, value, what to do``.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        """Keep the parts, so that callers can add to them, and build the message."""
        self.where = where
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([f"{where}: {count}", *(f"  - {p}" for p in self.problems)]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, tuple[str, ...]]]:
        """Keep both arguments when the error travels between processes."""
        return (type(self), (self.where, self.problems))


class DataError(UserError):
    """A data set is missing, empty, overlapping, or lacks a field."""


class ModelError(UserError):
    """A model is missing, unreadable, or has no layer that the adapter could sit on."""


class NothingToForgetError(DataError):
    """The forget set does not stand out from the approximate set, so there is no target to reach."""


class IntegrityError(Exception):
    """Something that must never change did: base weights, a committed file, a recorded hash."""
