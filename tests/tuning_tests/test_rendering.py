"""A dry run shows a row of each role as the model reads it, and in which wording nobody chose it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, write
from conftest import byte_tokenizer
from suite_inputs import write_records

from core.data.tokens import TokenRow, TokenSplits
from tuning.rendering import LONGEST, RenderedRow, rendered_lines, rendered_rows

UNCHOSEN = "has no chat template, so auto asks it as 'PROMPT'"


def splits(**parts: tuple[str, str]) -> TokenSplits:
    encode = byte_tokenizer()
    rows: dict[str, tuple[TokenRow, ...]] = {}
    for part, (context, counted) in parts.items():
        ids = [encode(text)["input_ids"] if text else [] for text in (context, counted)]
        rows[part] = (TokenRow((*ids[0], *ids[1]), len(ids[0])),)
    return TokenSplits(parts=rows, identity={})


def test_context_and_what_counts_stand_apart_with_special_tokens_and_spaces() -> None:
    found = rendered_rows(splits(forget=("ask:\n", " me<eos>")), byte_tokenizer())
    row = RenderedRow(context="ask:\n", counted=" me<eos>", n_context=5, n_counted=4)
    assert found == {"forget": row}
    assert rendered_lines(found)[1:] == [
        r"  forget context (5 tokens): 'ask:\n'",
        "  forget counted (4 tokens): ' me<eos>'",
    ]


def test_of_each_role_one_row_is_shown_and_a_document_has_no_context() -> None:
    parts = splits(forget=("", "a text"), retain_probe=("", "b"), retain_train=("", "c"))
    found = rendered_rows(parts, byte_tokenizer())
    assert {role: row.counted for role, row in found.items()} == {"forget": "a text", "retain": "b"}
    assert not any("context" in line for line in rendered_lines(found)[1:])


def test_of_a_long_text_both_ends_are_shown() -> None:
    text = "a" * LONGEST + "b" * LONGEST
    (_, line) = rendered_lines(rendered_rows(splits(forget=("", text)), byte_tokenizer()))
    assert "'aaa" in line and "a [...] b" in line and line.endswith("bbb'")
    assert len(line) < LONGEST + 60


@pytest.fixture
def questions(tiny_sweep: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny sweep over questions; in square brackets, which a terminal must not read as its own."""
    for role in ("forget", "retain", "approximate", "general"):
        rows = [{"question": f"{role} [/{i}]?", "answer": f"it is {i}"} for i in range(30)]
        path = write_records(tmp_path / f"{role}.jsonl", rows)
        fields = {"prompt": "question", "answer": "answer"}
        tiny_sweep["data"][role] = {"source": str(path), "fields": fields}
    return tiny_sweep


def test_a_dry_run_shows_how_prompts_are_written(
    tune: Command, questions: dict[str, Any], own_cache: None
) -> None:
    shown = tune("sweep", write(questions), "--dry-run").out
    assert "forget context (12 tokens): 'forget [/0]?'" in shown
    assert "forget counted (9 tokens): ' it is 0<eos>'" in shown
    assert UNCHOSEN in shown
    questions["data"]["plain_template"] = "Q: {prompt}\nA: "
    found = tune("sweep", write(questions), "--dry-run", "--json").json
    assert found["rows"]["forget"]["context"] == "Q: forget [/0]?\nA:"
    assert set(found["rows"]) == {"forget", "retain", "approximate", "general"}
    assert found["wording"] is None
    assert json.dumps(found)
