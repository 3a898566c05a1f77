"""The report: one page that loads nothing, escapes what it shows, and says what the ledger says."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tuning.report import markdown, verdict, write_report
from tuning.run import Run, load_run

Built = Callable[..., Run]
HOSTILE = '<script>alert(1)</script> | [x](javascript:alert(2)) "><img src=x onerror=alert(3)>'
ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """Elements with their attributes, visible text, and the texts of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside is None:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


FIGURES = [
    "history",
    "tradeoff",
    "curves",
    "levels",
    "steps",
    "timeline",
    "importances",
    "slices",
    "pair",
    "parallel",
]
PANELS = [
    *FIGURES[: FIGURES.index("slices")],
    *(f"slices_{i}" for i in range(3)),
    *FIGURES[FIGURES.index("pair") :],
]


def test_report_is_a_page_a_markdown_file_a_sweep_file_and_pictures(sample_run: Run) -> None:
    page = write_report(sample_run)
    assert page == sample_run.path / "report" / "index.html"
    assert {p.name for p in page.parent.iterdir()} == {
        "index.html",
        "report.md",
        "sweep.yaml",
        *(f"{name}.png" for name in FIGURES),
    }
    for picture in page.parent.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_page_loads_nothing_from_outside(sample_run: Run) -> None:
    page = Page(write_report(sample_run))
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert not re.match(r"(?i)\s*(https?:)?//", value), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    policy = next(m for m in page.tags("meta") if "http-equiv" in m)["content"] or ""
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    own = [s for s in page.scripts if len(s) < 1_000_000]
    assert not any("http://" in s or "https://" in s for s in own)
    assert len(page.scripts) - len(own) == 1  # the library, once


def test_page_links_trials_relative_to_itself(sample_run: Run) -> None:
    path = write_report(sample_run)
    links = {a["href"] or "" for a in Page(path).tags("a")}
    inside = {link for link in links if link.startswith("../trials/")}
    assert len(inside) == len(sample_run.trials)
    assert all((path.parent / link).is_dir() for link in inside)
    assert (path.parent / "../spec.yaml").is_file()


def test_figures_of_the_page_are_json_with_the_runs_numbers(sample_run: Run) -> None:
    text = write_report(sample_run).read_text(encoding="utf-8")
    found = re.findall(
        r'<script type="application/json" id="data-(\w+)">(.*?)</script>', text, re.S
    )
    figures = {name: json.loads(content) for name, content in found}
    assert list(figures) == PANELS
    feasible = next(t for t in figures["history"]["data"] if t["name"] == "COMPLETE, feasible (4)")
    assert feasible["x"] == [0, 2, 3, 7]
    assert feasible["y"] == pytest.approx([0.9, 0.4, 0.8, 0.6])


def test_sections_stand_in_the_order_a_reader_needs(sample_run: Run) -> None:
    path = write_report(sample_run)
    order = [
        "Best configuration",
        "Figures",
        "What mattered",
        "Guard savings",
        "All trials",
        "Pruned and failed trials, and why",
        "Search space",
        "How to reproduce",
        "Environment",
    ]
    html = path.read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", html) == order
    text = path.with_name("report.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.M) == order


def test_verdict_names_the_best_trial_its_closure_and_its_drops(sample_run: Run) -> None:
    assert verdict(sample_run) == (
        "Trial 0 is the best of 8 finished trials: forget_closure 0.900 after 5 optimiser steps with "
        "retain_drop +0.060 nats per token (limit 0.1) and general_drop +0.080 nats per token (limit 0.1)"
        "; on the reporting split forget_closure 0.850, retain_drop +0.050, general_drop +0.090."
    )


def test_markdown_and_page_agree(sample_run: Run) -> None:
    path = write_report(sample_run)
    page = Page(path).text
    text = path.with_name("report.md").read_text(encoding="utf-8")
    shared = [
        verdict(sample_run),
        "Together they saved 13 of 42 planned optimiser steps (31.0 %)",
        "Below nothing moves within six steps, above it diverges.",
        "Cha et al., ICLR 2025",
        "LoKU, section 5",
        "--trial best --out exported",
        "unlearn-tune train exported/trial.yaml --out again",
        "sha256:ab12",
        "retain_drop = 0.800 exceeds the hard limit 0.5 at probe 1",
        "3 attempts failed, the last with: CUDA out of memory",
    ]
    for phrase in shared:
        assert phrase in page
        assert phrase in text
    rows = re.findall(r"^\| (\d+)(\\\*)? \| (?:COMPLETE|PRUNED|FAIL|INTERRUPTED) ", text, re.M)
    assert [int(n) for n, _ in rows] == [0, 3, 7, 2, 6, 1, 4, 5, 8]
    assert [int(n) for n, star in rows if star] == [0, 3, 7]
    html = path.read_text(encoding="utf-8")
    table = html[html.index('<section id="trials">') : html.index('<section id="stopped">')]
    assert [int(n) for n in re.findall(r'<a href="\.\./trials/[^"]*">(\d+)</a>', table)] == [
        int(n) for n, _ in rows
    ]
    assert table.count('<span class="star" title') == 3


def test_levels_before_and_after_stand_side_by_side(sample_run: Run) -> None:
    text = write_report(sample_run).with_name("report.md").read_text(encoding="utf-8")
    assert (
        "| forget (trained on; the same rows on both splits) | 80.0 % | 44.0 % | 1.000 | 2.800 |"
        in text
    )
    assert "| approximate (the target of forgetting) | 40.0 % | – | 3.000 | – |" in text
    assert "| retain | 55.0 % | 53.5 % | 2.000 | 2.060 |" in text
    assert "| retain | 55.0 % | 53.8 % | 2.100 | 2.150 |" in text  # reporting split
    assert "| retain_drop | +0.060 | +0.050 | at most 0.1 |" in text


def test_baseline_is_read_from_the_history_if_it_was_not_noted(build_run: Built) -> None:
    run = build_run(notes={})
    text = write_report(run).with_name("report.md").read_text(encoding="utf-8")
    assert (
        "| forget (trained on; the same rows on both splits) | 80.0 % | 44.0 % | 1.000 | 2.800 |"
        in text
    )
    assert "| approximate (the target of forgetting) | 40.0 % | – | 3.000 | – |" in text
    assert "It has not been measured on the reporting split" in text
    assert "The sweep was interrupted" in text


def test_finalists_are_also_shown_at_equal_utility(
    build_run: Built, sample_run: Run, sample_notes: Mapping[str, Any]
) -> None:
    notes = dict(sample_notes) | {
        f"report:{n}": dict(t.report_metrics) | {"forget_closure_at_utility": 0.4321}
        for n, t in enumerate(sample_run.trials)
        if t.report_metrics is not None
    }
    page = write_report(build_run(notes=notes))
    assert "which makes trials comparable at equal damage" in Page(page).text
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert text.count("| 0.432 |") >= 3
    assert "forget_closure_at_utility" not in write_report(sample_run).read_text(encoding="utf-8")


def test_with_a_retain_only_model_that_is_the_target(build_run: Built) -> None:
    model = {"source": "package:smollm2", "retain_only": "hub:some/model"}
    page = write_report(build_run(changes={"model": model}))
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert (
        "| forget under the retain-only model (the target of forgetting) | 40.0 % | – | 3.000 | – |"
        in text
    )
    assert "approximate (the target of forgetting)" not in text
    assert "looks like the forget set under the retain-only model" in Page(page).text


def test_hostile_texts_are_shown_and_never_run(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    space = {"adapter.rank": {"categorical": [4, 8], "why": HOSTILE, "source": HOSTILE}}
    run = build_run(
        scripts=[
            trial_script(probes=[(2.0, 0.0, 0.0)] * 6, reason=HOSTILE),
            trial_script(probes=[(4.0, 0.9, 0.9)], reason=HOSTILE),
            trial_script(probes=[(1.0, 0.0, 0.0)], fails=HOSTILE),
        ],
        changes={
            "space": space
            | {"optimizer.learning_rate": {"float": {"low": 0.1, "high": 0.2}, "why": "x"}},
            "start_from": [{"source": HOSTILE, "values": {"adapter.rank": 4}}],
        },
        notes={
            "versions": {HOSTILE: HOSTILE},
            "identity": {"model": HOSTILE},
            "created": HOSTILE,
            "error": HOSTILE,
        },
    )
    path = write_report(run)
    page = Page(path)
    # the library, a script of ours before it and one behind, and the drawings: two fields, two slices
    assert len(page.scripts) == 3 + len(PANELS) - 1
    assert not any("alert(" in s for s in page.scripts if len(s) < 1_000_000)
    assert {(i["src"] or "")[:15] for i in page.tags("img")} == {"data:image/png;"}
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert not any((a["href"] or "").startswith("javascript:") for a in page.tags("a"))
    text = path.with_name("report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "[x](javascript" not in text.replace(r"\[x\]", "")
    table = text[text.index("## All trials") : text.index("## Pruned")]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_empty_run_still_gives_a_report(build_run: Built) -> None:
    run = build_run(scripts=[], notes={})
    path = write_report(run)
    assert "No trial has finished yet." in Page(path).text
    assert "No trial has begun yet." in path.with_name("report.md").read_text(encoding="utf-8")
    assert len(list(path.parent.glob("*.png"))) == len(FIGURES)


def test_run_without_a_feasible_trial_says_what_came_nearest(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    run = build_run(
        scripts=[
            trial_script(probes=[(2.0, 0.19, 0.12)] * 6),
            trial_script(probes=[(2.0, 0.05, 0.14)] * 6),
            trial_script(probes=[(math.nan, math.nan, math.nan)]),
        ],
        notes={"ended": "no_feasible"},
    )
    expected = "None of 3 finished trials is feasible; trial 1 comes nearest, general_drop 0.040 above its limit."
    path = write_report(run)
    assert expected in Page(path).text
    text = path.with_name("report.md").read_text(encoding="utf-8")
    assert expected in text
    assert "No trial is feasible." in text


def test_the_report_says_the_scale_and_the_warnings_and_limits_from_below(
    build_run: Built, sample_notes: Mapping[str, Any]
) -> None:
    scale = "auto is retain_forgetting: the retain set is known by heart"
    warning = "the retain guard can first act on its limit at probe 4 of 6"
    run = build_run(
        changes={"constraints": [{"metric": "retain_utility", "at_least": 0.95}]},
        notes=dict(sample_notes) | {"scale": scale, "warnings": [warning]},
    )
    path = write_report(run)
    text = path.with_name("report.md").read_text(encoding="utf-8")
    for shown in (Page(path).text, text.replace("\\", "")):
        assert f"Scale of damage to retained text: {scale}." in shown
        assert f"Warning: {warning}." in shown
        assert "under retain_utility at least 0.95" in shown
        assert "(at least 0.95)" in shown


def test_what_falls_below_its_limit_is_said_so(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    run = build_run(
        scripts=[trial_script(probes=[(2.0, 0.19, 0.12)] * 6)],
        changes={"constraints": [{"metric": "retain_utility", "at_least": 0.999}]},
        notes={"ended": "no_feasible"},
    )
    utility = run.trials[0].metrics["retain_utility"]
    assert verdict(run).endswith(f"retain_utility {0.999 - utility:.3f} below its limit.")


def test_report_is_replaced_and_no_other_file_is_left(sample_run: Run) -> None:
    write_report(sample_run)
    before = {p.name for p in (sample_run.path / "report").iterdir()}
    write_report(load_run(sample_run.path))
    assert {p.name for p in (sample_run.path / "report").iterdir()} == before


def test_report_needs_neither_ray_nor_torch_nor_optuna() -> None:
    code = (
        "import sys, tuning.report; "
        "print([m for m in ('ray', 'torch', 'optuna', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_markdown_shows_signs_as_they_are() -> None:
    assert markdown("a|b <i> *c*\nd_e") == r"a\|b &lt;i&gt; \*c\* d_e"


def test_intervals_ties_and_broken_constraints_stand_in_both_pages(
    build_run: Built, trial_script: Any
) -> None:
    probes = [(2.9, 0.02, 0.02), (2.8, 0.05, 0.05)]
    run = build_run(
        scripts=[trial_script(probes=[p], half_width=0.1) for p in probes],
        changes={"budget": {"trials": 2, "max_steps": 1}},
        notes={
            "report:0": {"retain_drop": 0.02, "general_drop": 0.143},
            "report:1": {"retain_drop": 0.04, "general_drop": 0.06},
        },
    )
    page = write_report(run)
    text = page.with_name("report.md").read_text(encoding="utf-8")
    for shown in (text.replace("\\~", "~"), Page(page).text):
        assert (
            "Trial 1 is the best of 2 finished trials: forget_closure 0.900 (0.80 to 1.00)" in shown
        )
        assert "Trial 0 ties with it: the 95 % intervals overlap" in shown
        assert "general_drop +0.143 (limit 0.1)" in shown
        assert "95 % intervals by resampling rows" in shown
    assert "| 0 \\~ ^ |" in text
    assert "| retain_drop | +0.050 (-0.05 to +0.15) | +0.040 | at most 0.1 |" in text


def test_a_run_without_intervals_does_not_speak_of_them(sample_run: Run) -> None:
    text = write_report(sample_run).with_name("report.md").read_text(encoding="utf-8")
    assert "intervals by resampling" not in text
    assert "tie with it" not in text
