"""The report in a real browser: no complaint, every figure drawn, nothing wider than a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest

from core.store.durable import append_line
from tuning.records import EVENTS_FILE, now
from tuning.report import write_report
from tuning.run import Run
from tuning.samples import write_samples

pytestmark = pytest.mark.skipif(
    chromium.found() is None, reason="no Chromium here; apt-get install chromium brings one"
)

LONG = "wordwithoutanyblank" * 30

DRAWN = """
Array.from(document.querySelectorAll(".plot"), e => [e.id, e.querySelectorAll(
    ".scatterlayer .trace .point, .scatterlayer .js-line, .barlayer .point").length])
"""

TOO_WIDE = """
Array.from(document.body.querySelectorAll("*"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)
    .filter(e => !e.parentElement.closest(".scroll"))
    .map(e => e.tagName + "#" + e.id + "." + e.className + " " + e.getBoundingClientRect().right)
"""

INK = """
[getComputedStyle(document.documentElement).getPropertyValue("--ink").trim(),
 document.querySelector("#plot-history").layout.font.color,
 getComputedStyle(document.body).backgroundColor]
"""

SEEN = """
["plot", "still"].map(name => Array.from(document.querySelectorAll("." + name))
    .filter(e => e.getBoundingClientRect().height > 0).length)
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path / "profile") as opened:
        yield opened


@pytest.fixture
def page(build_run: Callable[..., Run], trial_script: Callable[..., Any]) -> Path:
    """Of a run with enough trials for importances, an event log, and words that no line holds."""
    probes = [[(1.2 + 0.1 * n, 0.009 * n, 0.0)] * 6 for n in range(11)]
    run = build_run(scripts=[trial_script(probes=p) for p in probes])
    for event in ("TrialBegan", "TrialProbed", "TrialEnded"):
        for number in range(11):
            line = {"time": now(), "event": event, "number": number, "attempt": 1}
            append_line(run.path / EVENTS_FILE, line, synced=False)
    texts = dict.fromkeys(("prompt", "truth", "before", "after"), LONG)
    write_samples(run.path, 0, 1, [{"role": role, **texts} for role in ("forget", "retain")])
    return write_report(run)


def test_every_figure_is_drawn_and_nothing_complains_on_a_desk_a_phone_and_paper(
    browser: chromium.Browser, page: Path
) -> None:
    for width in (1280, 390):
        browser.open(page, width=width)
        drawn = dict(browser.value(DRAWN))
        assert len(drawn) == 12  # of which three slices
        assert all(drawn.values()), drawn
        assert browser.value("document.documentElement.scrollWidth") == width
        assert browser.value(TOO_WIDE) == []

    browser.emulate(width=390, prefers_color_scheme="dark")
    assert browser.value(INK) == ["#e7e9ee", "#e7e9ee", "rgb(20, 23, 28)"]
    assert browser.value(SEEN) == [12, 0]

    browser.emulate(width=800, media="print", prefers_color_scheme="dark")
    assert browser.value(SEEN) == [0, 10]
    assert browser.value(INK)[::2] == ["#1b1f27", "rgb(255, 255, 255)"]
    assert browser.complaints == []


def test_a_script_in_the_page_that_breaks_would_be_heard(
    browser: chromium.Browser, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('one'); absent();</script>", encoding="utf-8")
    browser.open(broken, width=390)
    one, two = browser.complaints
    assert "one" in one
    assert "absent is not defined" in two
