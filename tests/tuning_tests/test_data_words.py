"""What is left out of the data is said in words: in the dry run, the report and the model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import Command, changed, is_refused, write

from core.data.counts import Counts
from tuning.card import model_card
from tuning.data_words import by_role, count_lines, count_words, data_warnings, read_counts
from tuning.report import write_report
from tuning.run import Run

LEFT_OUT = {
    "forget": {"read_rows": 2, "read_tokens": 150, "rows": 3, "tokens": 146}
    | {"dropped_chunks": 1, "dropped_tokens": 4},
    "approximate_probe": {"read_rows": 1, "read_tokens": 100, "rows": 1, "tokens": 64}
    | {"cut_rows": 1, "cut_tokens": 36},
    "approximate_report": {"read_rows": 2, "read_tokens": 80, "rows": 1, "tokens": 40}
    | {"repeated_rows": 1, "repeated_tokens": 40},
}
FORGET = "forget: 2 rows read, 3 kept with 146 tokens; left out: 1 last chunk too short (4 tokens)"
APPROXIMATE = (
    "approximate: 3 rows read, 2 kept with 104 tokens; left out: 36 tokens of 1 row cut, "
    "1 equal row (40 tokens) (probe 1, report 1)"
)
ONLY_BEGINNINGS = (
    "data.approximate: 1 of 3 rows are cut, while the forget set's documents are chunked: the target of "
    "forgetting is that of beginnings only; use overlong: chunk there, too"
)


def test_a_role_is_the_sum_of_its_parts_and_every_kind_of_loss_is_named() -> None:
    counts = read_counts(LEFT_OUT)
    assert list(by_role(counts)) == ["forget", "approximate"]
    assert count_lines(counts) == [FORGET, APPROXIMATE]


def test_nothing_left_out_is_said_too() -> None:
    found = count_words(Counts(read_rows=1, read_tokens=9, rows=1, tokens=9))
    assert found == "1 row read, 1 kept with 9 tokens; nothing is left out"


def test_blank_and_short_rows_are_named_and_warned_about_in_the_forget_set() -> None:
    some = Counts(read_rows=9, read_tokens=33, rows=6, tokens=31, blank_rows=1)
    both = Counts(**{**vars(some), "short_rows": 2, "short_tokens": 2})
    assert count_words(some).endswith("; left out: 1 blank row")
    assert count_words(both).endswith("; left out: 1 blank row and 2 rows too short")
    assert data_warnings({"retain": both}) == []
    assert data_warnings({"forget": both}) == [
        "data.forget: 1 blank row and 2 rows too short of 9 rows are left out: nothing of them would be predicted, so "
        "they are not forgotten; look at them if they should be"
    ]


def test_a_cut_forget_set_is_warned_about_and_a_cut_retain_set_is_not() -> None:
    cut = Counts(read_rows=3, read_tokens=10_100, rows=3, tokens=164, cut_rows=1, cut_tokens=9_936)
    assert data_warnings({"retain_train": cut, "forget": Counts(read_rows=3, rows=3)}) == []
    assert data_warnings({"forget": cut}) == [
        "data.forget: 1 of 3 rows are longer than max_tokens and are cut: 9936 of 10100 tokens are not forgotten; "
        "raise max_tokens, or for documents use overlong: chunk"
    ]


def test_chunks_of_the_forget_set_against_beginnings_of_the_approximate_set_are_warned_about() -> (
    None
):
    assert data_warnings(read_counts(LEFT_OUT)) == [ONLY_BEGINNINGS]


def test_a_run_without_counts_or_with_strange_ones_is_read() -> None:
    assert read_counts(None) == read_counts("forget") == {}
    strange = {"forget": {"rows": 3, "tokens": "<b>", "more": 1}, "retain_train": 4}
    assert read_counts(strange) == {"forget": Counts(rows=3)}


# Where it is shown


def with_texts(values: dict[str, Any], **texts: list[str]) -> dict[str, Any]:
    """A sweep over other texts, with 20 tokens a row."""
    for role, rows in texts.items():
        path = Path(f"{role}.jsonl")
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in rows), encoding="utf-8")
        source = {"source": str(path.resolve()), "max_tokens": 20}
        values = changed(values, f"data.{role}", source)
    return values


def test_dry_run_counts_what_would_be_left_out(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    long, short = "".join(chr(97 + i % 26) for i in range(43)), "a short text"
    values = with_texts(tiny_sweep, forget=[long, short, short])
    done = tune("sweep", write(values), "--dry-run")
    assert done.status == 0
    assert (
        "data, forget: 3 rows read, 3 kept with 52 tokens; left out: 1 last chunk too short (3 tokens), 1 equal "
        "row (12 tokens)\n" in done.out
    )
    assert "warning: data.forget" not in done.out
    cut = changed(values, "data.forget.overlong", "cut")
    done = tune("sweep", write(cut), "--dry-run")
    assert "warning: data.forget: 1 of 3 rows are longer than max_tokens and are cut" in done.out
    shown = json.loads(tune("sweep", write(cut), "--dry-run", "--json").out)["data_counts"]
    assert (shown["forget"]["cut_tokens"], shown["forget"]["repeated_rows"]) == (23, 1)
    assert sum(found["rows"] for part, found in shown.items() if part.startswith("retain")) == 40


def test_dry_run_keeps_rows_that_differ_in_a_sign(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    signs = [f"price {sign} tax" for sign in ("+", "-", "*", "/", "%", "**", "<<", ">>")]
    done = tune("sweep", write(with_texts(tiny_sweep, forget=signs)), "--dry-run")
    assert "data, forget: 8 rows read, 8 kept" in done.out


def test_dry_run_refuses_what_the_sweep_would_refuse(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    head = "the same twenty letters, then"
    values = with_texts(
        tiny_sweep,
        forget=[f"{head} a licence"],
        retain=[f"{head} a novel", *(f"retain row {i}" for i in range(24))],
    )
    is_refused(
        tune("sweep", write(values), "--dry-run"),
        "data.retain: ",
        "row 1 shares a row with data.forget: ",
        "20 token ids are equal after cutting",
    )


def test_dry_run_downloads_neither_model_nor_data_to_count_them(
    tune: Command, tiny_sweep: dict[str, Any], own_cache: None
) -> None:
    unknown = "data: not counted before tokenizer and data are on this machine\n"
    packaged = changed(tiny_sweep, "model.source", "package:smollm2")
    of_hub = changed(tiny_sweep, "data.forget.source", "hub:ORG/NAME")
    for values in (packaged, of_hub):
        done = tune("sweep", write(values), "--dry-run")
        assert (done.status, unknown in done.out) == (0, True), done
    assert not Path("cache").exists()


def test_report_and_card_say_what_was_left_out(build_run: Callable[..., Run]) -> None:
    run = build_run(notes={"data_counts": LEFT_OUT})
    html = write_report(run).read_text(encoding="utf-8")
    markdown = (run.path / "report" / "report.md").read_text(encoding="utf-8")
    words = FORGET.removeprefix("forget: ")
    assert f'<th>data forget</th><td class="words">{words}</td>' in html
    assert f"| data forget | {words} |" in markdown
    assert ONLY_BEGINNINGS in markdown
    assert ONLY_BEGINNINGS.replace("'", "&#39;") in html
    card = model_card(run, run.trials[0], "base", forget="f", saved=None, trial_rank=8)
    assert f"- {FORGET}\n- {APPROXIMATE}\n- {ONLY_BEGINNINGS}\n" in card


def test_a_card_of_a_run_without_counts_does_not_claim_that_nothing_was_left_out(
    sample_run: Run,
) -> None:
    trial = sample_run.trials[0]
    card = model_card(sample_run, trial, "base", forget="f", saved=None, trial_rank=8)
    assert "What was read and left out is not recorded." in card
    assert "nothing is left out" not in card
