"""What goes to the terminal: text from outside is shown as it is, and never read as markup or as an instruction.

Prompts, file names, messages of libraries and reasons of failures are written by others. ``[INST]`` in one of them
is no style, and an escape sequence in one of them must not move the cursor or set the window's title.
"""

import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_NOT_SHOWN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and end of line, marks that turn the direction of writing, halves of characters."""


def shown(text: str) -> str:
    r"""Text with what a terminal would obey instead of showing written out, such as ``\x1b``."""
    return _NOT_SHOWN.sub(lambda found: _written_out(ord(found[0])), text)


def terminal(*, is_error: bool = False) -> Console:
    """A console on stdout, or on stderr, that reads no markup in text and no names of emoji.

    What it shows beside plain text, such as tables, goes through :class:`Shown`.
    """
    return Console(stderr=is_error, markup=False, emoji=False, highlight=False)


class Shown:
    """Something for a console with all its text as :func:`shown` gives it; its own colours and lines stay."""

    def __init__(self, renderable: RenderableType) -> None:
        """Take what is shown."""
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._renderable, options):
            is_text = not segment.control
            yield segment._replace(text=shown(segment.text)) if is_text else segment


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
