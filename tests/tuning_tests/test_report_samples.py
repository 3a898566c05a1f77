"""What the model writes: the file of the run folder, and how the report shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.errors import UserError
from tuning.report import write_report
from tuning.run import Run
from tuning.samples import SAMPLES_FILE, agreement, read_samples, write_samples

HOSTILE = '<script>alert(1)</script> | [x](javascript:alert(2)) "><img src=x onerror=alert(3)>'


def row(role: str = "forget", **texts: str) -> dict[str, str]:
    return {
        "role": role,
        "prompt": "The lamp stood",
        "truth": "in the green window of the harbour",
        "before": "in the green window of the market",
        "after": "quiet and far",
    } | texts


def test_a_run_without_samples_has_none_and_its_report_no_such_section(sample_run: Run) -> None:
    assert read_samples(sample_run.path) is None
    assert "What the model writes" not in write_report(sample_run).read_text(encoding="utf-8")


def test_what_is_written_is_read(sample_run: Run) -> None:
    write_samples(sample_run.path, 3, 1, [row(), row("retain")])
    found = read_samples(sample_run.path)
    assert found is not None
    assert (found.trial, found.attempt) == (3, 1)
    assert [(s.role, s.prompt) for s in found.rows] == [
        ("forget", "The lamp stood"),
        ("retain", "The lamp stood"),
    ]


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("in the green window of the market", "in the green window of the"),
        ("in the green window of the harbours", "in the green window of the"),
        ("in the green", "in the green"),
        ("in the gre", "in the"),
        ("in the green window of the harbour", "in the green window of the harbour"),
        ("in the green window of the harbour and on", "in the green window of the harbour"),
        ("out", ""),
        ("", ""),
    ],
)
def test_what_agrees_with_the_data_is_counted_in_whole_words(written: str, known: str) -> None:
    assert written[: agreement(written, row()["truth"])] == known


def test_the_page_marks_what_agrees_and_says_of_which_trial(sample_run: Run) -> None:
    write_samples(sample_run.path, 0, 1, [row(), row("retain", after="in the green")])
    page = write_report(sample_run)
    html = page.read_text(encoding="utf-8")
    assert "by the untouched model and by trial 0. " in html
    assert "<mark>in the green window of the</mark> market" in html
    assert "</span>quiet and far</p>" in html
    assert "<mark>in the green</mark></p>" in html
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert (
        "| forget | The lamp stood … | in the green window of the harbour "
        "| in the green window of the market | quiet and far |" in text
    )


def test_samples_of_a_trial_that_is_no_longer_the_best_are_said_to_be(sample_run: Run) -> None:
    write_samples(sample_run.path, 3, 1, [row()])
    assert "by trial 3, which is no longer the best one" in write_report(sample_run).read_text(
        encoding="utf-8"
    )


def test_hostile_samples_are_shown_and_never_run(sample_run: Run) -> None:
    texts = dict.fromkeys(("prompt", "truth", "before", "after"), HOSTILE)
    write_samples(sample_run.path, 0, 1, [row(**texts)])
    page = write_report(sample_run)
    html = page.read_text(encoding="utf-8")
    section = html[html.index('<section id="samples">') : html.index('<section id="figures">')]
    assert section.count("&lt;script&gt;") == 4
    assert "<script" not in section and "<img" not in section
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", json.dumps({"trial": 0, "attempt": 1, "rows": [{"role": "x"}]})]
)
def test_a_file_that_holds_no_samples_is_refused_with_its_name(
    content: Any, sample_run: Run
) -> None:
    (sample_run.path / SAMPLES_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"samples\.json(:1: not JSON: |: is no file of samples \()"
    ):
        read_samples(sample_run.path)
