"""Errors that a user can act on. Each message names the place, the rule, the value and what to do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def first_line(err: BaseException) -> str:
    """What an error says in its first line; its kind if it says nothing."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]


def in_a_line(err: BaseException) -> str:
    """What an error of another's code says in a line, with its kind where that says more: ``KeyError: 'x'``."""
    speaks_for_itself = isinstance(err, OSError | ValueError | RuntimeError | UserError)
    line = first_line(err)
    kind = type(err).__name__
    return line if speaks_for_itself or line == kind else f"{kind}: {line}"


_MOST_LINES, _MOST_SIGNS = 50, 1_000
"""Of a message, and of a line of it, that a person reads."""


def readable(err: "UserError") -> str:
    """The message of an error as a person can read it: a value of a megabyte, or a problem in each line, is cut."""
    lines = str(err).split("\n")
    shown = [
        line if len(line) <= _MOST_SIGNS
        else f"{line[: _MOST_SIGNS // 2]} [{len(line) - _MOST_SIGNS} signs left out] {line[-_MOST_SIGNS // 2 :]}"
        for line in lines[:_MOST_LINES]
    ]  # fmt: skip
    if len(lines) > _MOST_LINES:
        shown.append(f"  and {len(lines) - _MOST_LINES} more")
    return "\n".join(shown)


@contextmanager
def foreign(refused: Callable[[Exception], Exception]) -> Iterator[None]:
    """Within the context only another's code is called, on what a user gave: whatever it raises is about that.

    Libraries raise what their own libraries raise, of any kind and of another one in the next version, so no list of
    kinds would hold. What is no word on the user's input flies: an error that already is for a user, and a lack of
    memory, after which a trial is tried again on less.

    Args:
        refused: Makes the user's error of it, with place, what was said and what to do; the same error flies.
    """
    try:
        yield
    except Exception as err:
        made = err if isinstance(err, UserError) or _lacks_memory(err) else refused(err)
        if made is err:
            raise
        raise made from err


def _lacks_memory(err: Exception) -> bool:
    """Python's own error, torch's on a GPU, and torch's on a CPU, which has no kind of its own."""
    kinds = {kind.__name__ for kind in type(err).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(err)


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


class FileError(UserError):
    """A file cannot be read as what it is taken for.

    Args:
        where: The file.
        problem: The rule, what was found, and what to do.
        line: Its line; 0 where there is none.
    """

    def __init__(self, where: str, problem: str, line: int = 0) -> None:
        """Keep the parts, so that callers can say them in their own way, and build the message."""
        self.where, self.problem, self.line = where, problem, line
        super().__init__(f"{where}:{line}: {problem}" if line else f"{where}: {problem}")

    def __reduce__(self) -> tuple[type["FileError"], tuple[str, str, int]]:
        """Keep all arguments when the error travels between processes."""
        return (type(self), (self.where, self.problem, self.line))


class DataError(UserError):
    """A data set is missing, empty, overlapping, or lacks a field."""


class ModelError(UserError):
    """A model is missing, unreadable, or has no layer that the adapter could sit on."""


class NothingToForgetError(DataError):
    """The forget set does not stand out from the approximate set, so there is no target to reach."""


class EndedError(Exception):
    """What the world did keeps a run from going on; nothing finished is lost, and the message says how to go on.

    The command line prints it without a traceback, exit status 4.
    """


class IntegrityError(Exception):
    """Something that must never change did: base weights, a committed file, a recorded hash."""
