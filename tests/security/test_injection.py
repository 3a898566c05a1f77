"""Texts of others in a report, a served page, a model card, a notebook: shown as they are, and never more than text."""

from __future__ import annotations

import json
import sqlite3
import string
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scripted_runs import TrialScript, write_run

from core.store.durable import append_line
from tuning.card import model_card
from tuning.live import serving
from tuning.records import EVENTS_FILE, attempt_folder, now
from tuning.report import index_page, write_report
from tuning.run import Run, load_run
from tuning.samples import write_samples
from tuning.tensorboard import write_events

RUNS = "window.injected=(window.injected||0)+1"
AWAY = "http://evil.example/x"
HAND_MADE = (
    f"<script>{RUNS}</script>",
    f"</script><script>{RUNS}</script>",
    f"</title></style></textarea><script>{RUNS}</script>",
    f'"><img src={AWAY} onerror="{RUNS}">',
    f"'><svg onload='{RUNS}'><use href={AWAY}#a /></svg>",
    f"<iframe srcdoc='<script>parent.{RUNS}</script>'></iframe>",
    f"<a href='javascript:{RUNS}'>click</a><a href='{AWAY}'>away</a>",
    f"<style>@import '{AWAY}';*{{background:url({AWAY})}}</style>",
    f"<link rel=stylesheet href={AWAY}><meta http-equiv=refresh content='0;url={AWAY}'>",
    f"<base href={AWAY}><form action={AWAY}><button formaction='javascript:{RUNS}'>x</button></form>",
    f"]]><!--><script>{RUNS}</script><!--",
    f"\\u003cscript\\u003e{RUNS}\\u003c/script\\u003e",
    f"{{{{ 7*7 }}}}{{% raw %}}${{{RUNS}}}`+{RUNS}+`",
    f"&lt;script&gt;{RUNS}&lt;/script&gt;&#60;img src=x onerror={RUNS}&#62;",
    f"[x](javascript:{RUNS}) ![x]({AWAY}) <{AWAY}> | a | b |",
    "$\\frac{ $x^{$ \\bad $$ %s %(x)s {0} {x}",
    "line one\nline two\r\n# heading\n---\nbase_model: evil/evil\n---\n",
    "\u202egnp.exe\u2028\u2029\x00\x1b[31m\ud83d"[:-1],
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUNS}>",
    f"<b>bold</b><i>italic</i><sup>up</sup><br><span style='position:fixed;inset:0'>{AWAY}</span>",
)

HOSTILE = st.lists(
    st.sampled_from([*HAND_MADE, *string.punctuation, "</", "-->", "'\"", "onload=", "src=//evil"])
    | st.text(max_size=8),
    min_size=1,
    max_size=5,
).map("".join)


@pytest.fixture(scope="module")
def hostile() -> list[str]:
    """The strings by hand, and sixty that hypothesis made of their parts."""
    made: list[str] = []

    @settings(max_examples=60, database=None, deadline=None, phases=[Phase.generate])
    @given(HOSTILE)
    def collect(text: str) -> None:
        made.append(text.encode("utf-8", "replace").decode())

    collect()
    assert len(made) >= 50
    return [*HAND_MADE, *made]


HARMFUL = """
JSON.stringify({
    ran: window.injected || 0,
    handlers: Array.from(document.querySelectorAll("*")).filter(e =>
        Array.from(e.attributes).some(a => a.name.startsWith("on"))).map(e => e.outerHTML.slice(0, 200)),
    made: Array.from(document.querySelectorAll("iframe, object, embed, base, form, link, math, img, use, meta"))
        .filter(e => !/^(data|blob):/.test(e.getAttribute("src") || "") && e.tagName != "META"
            || e.tagName == "META" && (e.httpEquiv || "").toLowerCase() == "refresh")
        .map(e => e.outerHTML.slice(0, 200)),
    links: Array.from(document.querySelectorAll("a")).map(e => String(e.getAttribute("href") ||
        e.getAttributeNS("http://www.w3.org/1999/xlink", "href") || ""))
        .filter(h => /javascript:|evil/i.test(h)),
    scripts: document.scripts.length,
})
"""
SHOWN = "document.body.textContent"


def injected(run: Run, texts: list[str]) -> Run:
    """The run with the texts in every place of its folder that takes one."""
    them = (texts * 20).__iter__()

    def text(_: object = None) -> str:
        return next(them)

    rows = [
        {"role": role, "prompt": text(), "truth": text(), "before": text(), "after": text()}
        for role in ("forget", "retain")
        for _ in range(len(texts) // 6 + 1)
    ]
    write_samples(run.path, 0, 1, rows)
    with sqlite3.connect(run.path / "ledger.db") as database:
        query = "SELECT trial_id FROM trial_user_attributes WHERE key = 'reason'"
        for (trial,) in database.execute(query).fetchall():
            database.execute(
                "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'reason' AND trial_id = ?",
                (json.dumps(text()), trial),
            )
    for number in range(len(run.trials)):
        for event in ("TrialBegan", "TrialEnded"):
            line = {"time": now(), "event": event, "number": number, "attempt": 1, "x": text()}
            append_line(run.path / EVENTS_FILE, line, synced=False)
    read = load_run(run.path)
    trials = [
        replace(
            trial,
            params=dict(trial.params) | {"method.adapter_init": text(), text(): text()},
            proposed_by=text(),
            stopped_by=text(),
        )
        for trial in read.trials
    ]
    return replace(read, trials=tuple(trials))  # more than a ledger that is read may hold


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory, hostile: list[str]) -> Run:
    """A run whose every free text, choice and record is one of them."""
    a, b, c, d, e, f, *_ = hostile[:6]
    space = {
        "optimizer.learning_rate": {"float": {"low": 1e-5, "high": 1e-2}, "why": a, "source": b},
        "adapter.rank": {"categorical": [4, 8], "why": c},
        "method.adapter_init": {"categorical": ["lora", "fila"], "why": d},
    }
    run = write_run(
        tmp_path_factory.mktemp("runs") / "hostile",
        scripts=[
            TrialScript(probes=[(1.2 + 0.1 * n, 0.009 * n, 0.0)] * 6, reason=hostile[n])
            for n in range(9)
        ]
        + [TrialScript(probes=[(1.0, 0.0, 0.0)], fails=text) for text in hostile[9:12]],
        changes={
            "space": space,
            "method": {"forget_loss": "ihl"},
            "start_from": [{"source": e, "values": {"adapter.rank": 4}}],
        },
        notes={
            "versions": {f: a, b: c},
            "identity": {"model": d, e: f},
            "created": a,
            "scale": b,
            "file": c,
            "warnings": hostile[:20],
            "ended": "done",
        },
    )
    return injected(run, hostile)


needs_chromium = pytest.mark.skipif(
    chromium.found() is None, reason="no Chromium here; apt-get install chromium brings one"
)


@needs_chromium
def test_no_text_of_a_run_runs_or_asks_for_anything_in_a_browser(
    hostile_run: Run, tmp_path: Path
) -> None:
    page = write_report(hostile_run)
    assert "Content-Security-Policy" in page.read_text(encoding="utf-8")[:1000]
    with chromium.browser(tmp_path / "profile") as browser, serving(hostile_run.path) as address:
        for opened in (
            page,
            address,
            address.replace(f"{hostile_run.name}/", "").removesuffix("runs/"),
        ):
            browser.requests.clear()
            browser.open(opened, width=1280)
            found = json.loads(browser.value(HARMFUL))
            n_scripts = found.pop("scripts")
            assert found == {"ran": 0, "handlers": [], "made": [], "links": []}
            shown = browser.value(SHOWN)
            if opened is page:
                own = n_scripts
                for text in (HAND_MADE[0], HAND_MADE[3], HAND_MADE[6], HAND_MADE[7]):
                    assert text in shown
            foreign = [
                url
                for url in browser.requests
                if not url.startswith(
                    ("data:", "blob:", page.as_uri(), address.partition("/runs")[0])
                )
            ]
            assert foreign == []
        browser.emulate(width=390, media="print")
        assert browser.value("window.injected || 0") == 0
        assert own > 0


@needs_chromium
def test_a_text_that_ran_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "open.html").write_text(
        f"<body>{HAND_MADE[0]}{HAND_MADE[3]}{HAND_MADE[6]}", encoding="utf-8"
    )
    with chromium.browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "open.html", width=800)
        found = json.loads(browser.value(HARMFUL))
        assert found["ran"] >= 1
        assert found["handlers"] and found["made"] and found["links"]
        assert any("evil" in url for url in browser.requests)


def test_the_markdown_and_the_card_hold_no_html_and_no_other_front_matter(
    hostile_run: Run,
) -> None:
    trial = hostile_run.trials[0]
    card = model_card(
        hostile_run, trial, HAND_MADE[0], forget=HAND_MADE[14], saved=None, trial_rank=4
    )
    _, front, _ = card.split("---\n", 2)
    assert {line.partition(":")[0] for line in front.splitlines()} == {"library_name", "tags"}
    for text in (card, _report_in_markdown(hostile_run)):
        outside = "".join(_outside_code(text))
        assert "<script" not in outside
        assert "<img" not in outside
        assert "](javascript" not in outside.replace(r"\](", "")
        assert "](http://evil" not in outside.replace(r"\](", "")


def _report_in_markdown(run: Run) -> str:
    from tuning.report.content import report_content
    from tuning.report.pages import _environment

    text: str = (
        _environment().get_template("report.md.j2").render(report_content(run) | {"figures": []})
    )
    return text


def _outside_code(text: str) -> list[str]:
    """Markdown without its code blocks and spans, whose signs are shown as they are."""
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    return [part for line in lines for part in line.split("`")[::2]]


def test_a_notebook_shows_a_run_as_text(hostile_run: Run) -> None:
    shown = hostile_run._repr_html_()
    for bad in ("<script", "<img", "<svg", "<iframe", "<a "):
        assert bad not in shown
    assert "&lt;script&gt;" in shown


def test_the_list_of_runs_escapes_names_and_states() -> None:
    page = index_page([(text, text) for text in HAND_MADE])
    assert "<script" not in page
    assert "<img" not in page


def test_event_files_lie_in_their_folder_whatever_names_are(hostile_run: Run) -> None:
    folder = write_events(hostile_run)
    assert {p.name for p in folder.iterdir()} <= {f"{t.number:04d}" for t in hostile_run.trials}
    history = hostile_run.path / attempt_folder(0, 1) / "history.jsonl"
    assert history.is_file()
