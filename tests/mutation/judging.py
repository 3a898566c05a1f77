"""How something bad that was given ended: it worked, was refused with one message, or the product has a fault."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from core.errors import UserError, readable
from core.store.refusal import refusal
from tuning import cli

Verdict = Literal["accepted", "refused", "traceback", "hang", "no message"]
FAULTS: tuple[Verdict, ...] = ("traceback", "hang", "no message")
CPU_LIMIT_S = 30.0
"""Seconds of computing after which something hangs; the slowest good file takes a tenth."""
WALL_LIMIT_S = 240.0
"""Seconds after which something waits for what does not come."""
MOST_SIGNS = 60_000
"""Of a message: a person reads it, so what is wrong is shown cut, not whole."""
Names = Sequence[str]
"""Of which a refusal must hold one: the file, the folder, or a part of it."""
_ENDINGS = {0, 2, 3, 4}
_OURS = re.compile(r"/((?:core|tuning)/[^:]*\.py)$")


class _Hang(BaseException):
    """It took too long; no handler of an ``Exception`` catches it."""


@dataclass(frozen=True)
class Ending:
    """How it ended.

    Attributes:
        verdict: In a word.
        said: Its message, or the traceback.
        out: What a command printed.
        place: Of a fault the innermost line of ours, by which equal faults are found.
    """

    verdict: Verdict
    said: str = ""
    out: str = ""
    place: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the product must be mended."""
        return self.verdict in FAULTS


def of_call(call: Callable[[], object], *, names: Names) -> Ending:
    """How a function of ours ends.

    Args:
        call: The function, with what it is given.
        names: Of which a refusal must hold one.
    """
    return _limited(lambda: _called(call, names))


def of_command(*arguments: object, names: Names) -> Ending:
    """How a command ends, through the entry point, in this process."""
    return _limited(lambda: _commanded([str(a) for a in arguments], names))


def _called(call: Callable[[], object], names: Names) -> Ending:
    try:
        call()
    except UserError as err:
        return _refused(f"error: {readable(err)}", names)
    except OSError as err:
        said = "the disk is full" if err.errno == errno.ENOSPC else refusal(err)
        return _broken(err) if said is None else _refused(f"error: {said}", names)
    return Ending("accepted")


def _commanded(arguments: list[str], names: Names) -> Ending:
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    before, sys.argv = sys.argv, ["unlearn-tune", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = before
    return judged(status, out.getvalue(), err.getvalue(), names=names)


def judged(status: object, out: str, err: str, *, names: Names) -> Ending:
    """How a command ended, by its status and by what it said."""
    if "Traceback (most recent call last)" in err:
        return Ending("traceback", err, out, place=err.strip().splitlines()[-1])
    if status not in _ENDINGS:
        return Ending("no message", f"status {status}: {err}", out, place=f"status {status}")
    return _refused(err, names, out) if status == 2 else Ending("accepted", err, out)


def _refused(said: str, names: Names, out: str = "") -> Ending:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or len(said.strip()) < len("error: ") + 10:
        return Ending("no message", said, out, place=f"{len(lines)} messages")
    if not any(name in said for name in names):
        return Ending("no message", said, out, place="a message without the place")
    if len(said) > MOST_SIGNS:
        return Ending("no message", said[:MOST_SIGNS], out, place="a message without end")
    return Ending("refused", said, out)


def _limited(judge: Callable[[], Ending]) -> Ending:
    try:
        with _limits():
            return judge()
    except _Hang as err:
        return Ending("hang", _shown(err), place=_innermost(err))
    except Exception as err:
        return _broken(err)


def _broken(err: BaseException) -> Ending:
    return Ending("traceback", _shown(err), place=_innermost(err))


def _shown(err: BaseException) -> str:
    return "".join(traceback.format_exception(err))[-6_000:]


def _innermost(err: BaseException) -> str:
    """File, function and kind of error: the last line of ours on its way."""
    ours = [
        f"{found[1]} {frame.name}"
        for frame in traceback.extract_tb(err.__traceback__)
        if (found := _OURS.search(frame.filename)) and "site-packages" not in frame.filename
    ]
    return f"{ours[-1] if ours else '?'}: {type(err).__name__}"


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Within the context, what computes or waits for too long is ended."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Hang(f"it has not ended after {CPU_LIMIT_S:g} s of computing or {WALL_LIMIT_S:g} s")

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, CPU_LIMIT_S),
        signal.SIGALRM: (signal.ITIMER_REAL, WALL_LIMIT_S),
    }
    handlers = {number: signal.signal(number, end) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0.0)
            signal.signal(number, handlers[number])


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Within the context this process may not read what it may not: for root, to whom every file is open, another."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
