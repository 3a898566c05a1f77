"""Writes the report of a run: one HTML page that needs nothing else, the same in Markdown, and figures as PNG.

Needs neither Ray nor torch. All texts of a run are untrusted (a run folder may come from a stranger).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from core.store.durable import commit, commit_yaml
from tuning.over_seeds import ends, or_nothing
from tuning.plots import drawing
from tuning.report.commands import REPORT_FOLDER, SWEEP_FILE
from tuning.report.content import report_content
from tuning.report.figures import report_figures
from tuning.run import Run
from tuning.wording import (
    as_markdown,
    between,
    duration,
    measured,
    number,
    parameter,
    percent,
    signed,
    with_interval,
)

_SWEEP_HEADER = "# The sweep of this run with every default, as `unlearn-tune sweep` takes it.\n"


def write_report(run: Run) -> Path:
    """Write ``report/`` in the run folder: ``index.html``, ``report.md``, ``sweep.yaml`` and PNGs.

    Older ones are replaced.

    Returns:
        The HTML page.

    Raises:
        OSError: If the folder cannot be written.
        UserError: If the samples of the run cannot be read.
    """
    folder = run.path / REPORT_FOLDER
    content = report_content(run)
    figures = report_figures(run)
    for figure in figures:
        commit(folder / f"{figure.name}.png", _writer(figure.png))
    commit_yaml(folder / SWEEP_FILE, run.spec.plain(), header=_SWEEP_HEADER)
    content |= {"figures": figures}
    pages = _environment()
    text = pages.get_template("report.md.j2").render(content)
    commit(folder / "report.md", _writer(re.sub(r"\n{3,}", "\n\n", text).encode("utf-8")))
    page = folder / "index.html"
    commit(page, _writer(_html(content).encode("utf-8")))
    return page


def live_page(run: Run, *, stamp: str, others: Sequence[tuple[str, str]]) -> str:
    """The same page for a run that goes on, as a server gives it: without pictures for paper, looking for news itself.

    Args:
        run: The run.
        stamp: What the page shows; it loads itself anew when ``state.json`` beside it says another one.
        others: Names and states of the runs of the folder, for the list beside.
    """
    content = report_content(run) | {"figures": report_figures(run)}
    return _html(content, live={"stamp": stamp, "others": others})


def index_page(runs: Sequence[tuple[str, str]]) -> str:
    """The list of runs alone."""
    text: str = _environment().get_template("runs.html.j2").render(runs=runs)
    return text


def _html(content: Mapping[str, Any], *, live: Mapping[str, Any] | None = None) -> str:
    text: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            content,
            live=live,
            plotly_js=Markup(drawing.plotly_js()),  # noqa: S704  # the library's own text
        )
    )
    return text


def markdown(value: Any) -> Markup:
    """A text that Markdown shows as it is, in one line, also in a cell of a table."""
    return Markup(as_markdown(value))  # noqa: S704  # escaped there


def verbatim(value: Any) -> Markup:
    """A line of an indented code block, where Markdown shows every sign as it is."""
    return Markup(" ".join(str(value).splitlines()))  # noqa: S704  # a code block holds no markup


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("tuning", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: Sequence[Callable[..., Any]] = (
        number,
        signed,
        measured,
        with_interval,
        between,
        parameter,
        percent,
        duration,
        ends,
        markdown,
        or_nothing,
        verbatim,
    )
    pages.filters |= {function.__name__: function for function in shown}
    return pages


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write
